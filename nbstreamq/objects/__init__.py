"""What is pickled: functions, values, references to values, exceptions."""
