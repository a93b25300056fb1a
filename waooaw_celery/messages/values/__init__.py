"""How the immutable values of this package are made: messages, their facts and their receipts."""
