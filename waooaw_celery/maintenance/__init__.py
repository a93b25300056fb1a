"""Maintenance: what runs on a timetable. Purge, sweep, recovery; and the checks of `waooaw doctor`."""
