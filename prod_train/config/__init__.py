"""What a run is asked to do: options, schedules, when to stop."""
