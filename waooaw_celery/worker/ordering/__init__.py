"""Messages of one key are handled in order, one at a time; messages of one sender hold up no others."""
