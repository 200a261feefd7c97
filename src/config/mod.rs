//! Flags, environment and file, turned once into a checked configuration.
