"""What all commands share: their classes, their types of arguments, their exit codes, their completion."""
