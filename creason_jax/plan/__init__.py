"""How much memory and time a run will need, found without its devices: by compiling its programs, or by counting bytes."""
