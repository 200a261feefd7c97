//! Command line: clap types and one file per command; stdout is data, stderr is talk.
