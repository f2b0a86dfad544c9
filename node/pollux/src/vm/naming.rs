//! What every line of the log about a VM bears: which VM, at which generation, in which operation.
//!
//! The actor does what an event makes necessary inside such a span; jobs of the worker and tasks of a move take it with them.
//! `--log-format json` writes it as the object `span` of each line, the text form in front of it.

use pollux_state::id::{OpId, VmId};
use pollux_vm::View;
use tracing::{Span, field::display};

/// The span for what comes of an event: `now` is what the log says as of it, `before` what it said until then. What ends a
/// move still belongs to it, and what comes of a VM's deletion to its last generation.
pub(super) fn span(vm: VmId, name: Option<&str>, before: &View, now: &View) -> Span {
    let seen = now.vm.as_ref().or(before.vm.as_ref());
    let generation = seen.map_or(0, |seen| seen.generation.0);
    let operation = operation(now).or_else(|| operation(before)).map(display);
    let name = name.map_or_else(|| vm.to_string(), str::to_owned);
    // Of the highest level, so that whoever wants errors alone still learns whose they are.
    tracing::error_span!("vm", vm = name, generation, operation)
}

fn operation(view: &View) -> Option<OpId> {
    view.vm.as_ref()?.phase.moving().map(|(op, _, _)| op)
}

/// One line for what was decided about the VM, if anything was.
pub(super) fn tell_decision(before: &View, now: &View) {
    let decided = |view: &View| view.vm.as_ref().map(|seen| (seen.generation, seen.phase.clone(), seen.desired));
    if decided(before) == decided(now) {
        return;
    }
    match &now.vm {
        Some(seen) => {
            tracing::info!(index = now.index, phase = %seen.phase, desired = ?seen.desired, "decided");
        }
        None => tracing::info!(index = now.index, phase = "deleted", "decided"),
    }
}
