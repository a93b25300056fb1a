"""Messages, receipts and topics, and the rules for them. Nothing here needs a running broker or database."""
