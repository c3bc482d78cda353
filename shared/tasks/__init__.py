"""What is asked about a registry's patients: one file a task, and what several of them need."""
