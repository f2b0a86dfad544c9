//! Endpoints on the loopback interface: what reaches whom, who is refused, and what each side knows afterwards.

mod calls;
mod harness;
mod joining;
mod restarts;
mod rude;
mod sessions;
mod strangers;
