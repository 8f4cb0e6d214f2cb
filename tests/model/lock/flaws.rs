//! Flaws.
