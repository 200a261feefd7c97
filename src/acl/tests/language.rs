//! The language as text: what is read, what is refused, in which words.

use super::*;
