//! Runs many seeded simulations of gateways under faults, or prints the history of one.
//!
//!     cargo run --profile dist --example simulate -- --seeds 1000000 [--from N] [--flaw NAME]
//!     cargo run --release --example simulate -- --seed N [--flaw NAME]
//!
//! Prints how many simulations ran and, at the end, how often each fault and each kind of answer
//! occurred. If a guarantee is violated, it prints the lowest such seed with everything that
//! happened to that key, and exits with 1. A flaw is a faulty store, clock, upstream or policy:
//! with it, a violation must be found.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a simulation stops at the first error"
)]

#[path = "../tests/sim/simulation/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
mod simulation;

use std::process::ExitCode;

use clap::Parser;
use simulation::{Flaw, search, simulate};
use tokio::time::Instant;

/// Seeds between two lines of progress.
const PROGRESS: u64 = 10_000;

/// Seeded simulations of gateways under faults.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Prints the history of this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// The flaw to simulate.
    #[arg(long, value_parser = flaw)]
    flaw: Option<Flaw>,
}

fn flaw(name: &str) -> Result<Flaw, String> {
    Flaw::named(name).ok_or_else(|| format!("one of {:?}", Flaw::ALL))
}

fn main() -> ExitCode {
    let Arguments { seeds, from, seed, flaw } = Arguments::parse();
    if let Some(seed) = seed {
        let report = simulate(seed, flaw);
        println!("{}trace digest {:016x}", report.story(), report.digest());
        return if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let begin = Instant::now();
    let rate = |ran: u64| ran as f64 / begin.elapsed().as_secs_f64();
    let found = search(from..from.saturating_add(seeds), flaw, |ran| {
        if ran.is_multiple_of(PROGRESS) {
            println!("{ran} seeds, {:.0} per second", rate(ran));
        }
    });
    for (name, count) in &found.tally {
        println!("{count:>12}  {name}");
    }
    println!(
        "{} seeds in {:.1} s, {:.0} per second",
        found.seeds,
        begin.elapsed().as_secs_f64(),
        rate(found.seeds)
    );
    match found.broken {
        Some(broken) => {
            println!("{}", broken.story());
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}
