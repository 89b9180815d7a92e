"""What travels: functions, values, references to values, exceptions."""
