//! What the log of a whole cluster says of its VMs, line by line.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use pollux_sim::cluster::{Settings, run};
use serde_json::Value;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Seeds until one has a move that succeeds.
const SEEDS: u64 = 8;

/// What was logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logged {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn every_line_about_a_vm_bears_its_name_its_generation_and_its_operation() {
    let logged = Logged::default();
    let filter = EnvFilter::new("off,pollux::vm=debug");
    let subscriber = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(logged.clone()).finish();
    let settings = Settings { faults: Duration::from_secs(5), ..Settings::default() };
    let moves = tracing::subscriber::with_default(subscriber, || {
        (0..SEEDS)
            .map(|seed| run(seed, &settings).unwrap_or_else(|failure| panic!("{failure}")).moves)
            .find(|moves| *moves > 0)
    });
    assert!(moves.is_some(), "no seed has a move");

    let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &Value, field: &str| line["span"][field].clone();
    for line in &lines {
        assert!(of(line, "vm").is_string() && of(line, "generation").is_u64(), "it does not say of which VM: {line}");
    }

    // What both sides of a move do, they do in an operation; what a VM does by itself, in none.
    let roles: Vec<&Value> = lines.iter().filter(|line| line["fields"]["message"] == "role").collect();
    let entering = |role: &str| roles.iter().filter(|line| line["fields"]["now"] == *role).copied().collect::<Vec<_>>();
    for role in ["handing over", "handed over", "receiving", "loading"] {
        let found = entering(role);
        assert!(!found.is_empty(), "nobody is ever {role}");
        for line in found {
            assert!(of(line, "operation").as_str().is_some_and(|id| id.len() == 32), "in no operation: {line}");
        }
    }
    let starts = entering("starting");
    assert!(starts.iter().any(|line| of(line, "operation").is_null()), "a start is no operation: {starts:?}");

    // Each decision is told, with its place in the log, and the generation is the one that was decided.
    let decided = |phase: &str| {
        lines.iter().find(|line| {
            line["fields"]["message"] == "decided"
                && line["fields"]["phase"].as_str().is_some_and(|it| it.starts_with(phase))
        })
    };
    let (moving, arriving) = (decided("moving from").unwrap(), decided("arriving in").unwrap());
    assert!(moving["fields"]["index"].is_u64() && of(moving, "operation").is_string(), "{moving}");
    assert!(of(arriving, "generation").as_u64() > Some(0), "{arriving}");
}
