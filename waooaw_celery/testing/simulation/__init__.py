"""What happens in a test, in order: a worker in the test's process, beat, and the time that passes between."""
