//! Integration tests.

mod demo;
