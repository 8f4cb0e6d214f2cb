//! stub
use super::memory::Memory; use crate::clock::StoreClock;
pub type Embedded = Memory;
pub struct Options(StoreClock);
impl Options { pub fn new(c: StoreClock) -> Self { Options(c) } }
impl Memory { pub fn opens(_: &std::path::Path, o: Options) -> anyhow::Result<Memory> { Ok(Memory::new(o.0)) } pub async fn close(&self) {} }
