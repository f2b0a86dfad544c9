//! The mirror by itself. Under faults, with all it talks to: `tests/sim`, `volume`.
#![allow(missing_docs)]

mod comparing;
mod ending;
mod heat;
mod promises;
mod replicas;
mod world;
