//! Tests of the whole room against real files.
