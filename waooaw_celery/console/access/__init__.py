"""Who uses the console, and what that person may see and do."""
