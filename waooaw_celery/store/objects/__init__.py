"""The stores of large payloads, which travel by reference."""
