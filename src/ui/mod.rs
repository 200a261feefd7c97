//! The console: askama pages and forms over the same service calls; sessions and CSRF.
