//! `pollux vm why`: why a VM is where it is, and why not elsewhere.

use pollux_api::{EventView, OperationResult, OperationView, PlaceView, WhyView};

use super::{
    super::{
        Context,
        exit::Failure,
        follow::short,
        output::{age, list, moment, now_ms, table},
        suggest,
    },
    view,
};

pub(crate) const NOTE: &str = "\
For each node it is asked whether the VM could run there, as it is now, and every reason why not is told. Nothing is started. \
`pollux vm migrate VM --to NODE --dry-run` tells what a move would cost.";

pub(crate) async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    match context.client.why_vm(name).await {
        Ok(why) => context.show_read(&why, |why| text(why, now_ms())),
        Err(error) => Err(suggest::for_vm(&context.client, name, error).await),
    }
}

fn text(why: &WhyView, now: u64) -> String {
    let vm = &why.vm;
    let mut rows = vec![("vm", format!("{}, for {}", view::state(vm), age(now, vm.since)))];
    rows.push(("where", view::place(vm)));
    rows.push(("home", format!("{}: it is started there", vm.home)));
    rows.push((
        "because",
        why.because.as_ref().map_or_else(
            || "the cluster does not remember any more".to_owned(),
            |event| format!("{} ({} ago, event {})", event.text, age(now, event.at), event.number),
        ),
    ));
    if let Some(cause) = &vm.stop_cause {
        rows.push(("stopped", cause.clone()));
    }
    if let Some(trouble) = &vm.trouble {
        rows.push(("stands still", trouble.clone()));
    }
    if vm.failed_starts > 0 {
        rows.push(("starts", format!("{} in a row came to nothing; it is tried again by itself", vm.failed_starts)));
    }
    if let Some(last) = &why.last_move {
        rows.push(("last move", moved(last, now)));
    }
    if let Some(held) = &why.held {
        rows.push(("not movable", held.clone()));
    }
    let mut text = list(rows);
    text.push('\n');
    text.push_str(&table(["NODE", "HERE", "FITS", "WHY NOT"], &[], why.nodes.iter().flat_map(lines)));
    for trouble in &why.troubles {
        text.push_str(&format!("\nproblem: {}\n  to do: {}\n", trouble.what, trouble.todo));
    }
    if !why.lately.is_empty() {
        text.push_str("\nlately\n");
        for event in &why.lately {
            text.push_str(&format!("  {}\n", told(event)));
        }
    }
    text
}

/// A node, and every reason on a line of its own.
fn lines(place: &PlaceView) -> Vec<[String; 4]> {
    let here = match (place.here, place.home) {
        (true, _) => "here",
        (false, true) => "home",
        (false, false) => "",
    };
    let fits = if place.fits { "yes" } else { "no" };
    let reason = |at: usize| place.obstacles.get(at).map(|obstacle| obstacle.what.clone()).unwrap_or_default();
    let first = [place.node.clone(), here.to_owned(), fits.to_owned(), reason(0)];
    let blank = || " ".to_owned();
    let rest = (1..place.obstacles.len()).map(|at| [blank(), blank(), blank(), reason(at)]);
    std::iter::once(first).chain(rest).collect()
}

fn moved(operation: &OperationView, now: u64) -> String {
    let ended = operation.ended.map(|ended| format!(", {} ago", age(now, ended))).unwrap_or_default();
    let result = match operation.result {
        Some(OperationResult::Succeeded) => "succeeded".to_owned(),
        Some(OperationResult::Cancelled) => "was cancelled".to_owned(),
        Some(OperationResult::Failed) => {
            format!("failed: {}", operation.reason.as_deref().unwrap_or("no reason given"))
        }
        None => "is under way".to_owned(),
    };
    format!("{} -> {} {result}{ended} (operation {})", operation.from, operation.to, short(&operation.id))
}

fn told(event: &EventView) -> String {
    format!("{:>6}  {}  {}", event.number, moment(event.at), event.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_api::{Obstacle, VmView};

    const NOW: u64 = 1_700_000_090_000;

    fn place(node: &str, here: bool, reasons: &[&str]) -> PlaceView {
        let obstacles: Vec<Obstacle> = reasons.iter().map(|what| Obstacle::new("x", *what)).collect();
        PlaceView { node: node.into(), here, home: here, fits: obstacles.is_empty(), obstacles }
    }

    #[test]
    fn every_node_has_a_line_and_every_reason_another() {
        let event = |number, text: &str| EventView {
            number,
            at: 1_700_000_000_000,
            node: Some("n1".into()),
            vm: Some("web".into()),
            operation: None,
            text: text.into(),
        };
        let vm = VmView { failed_starts: 2, ..view::tests::web() };
        let why = WhyView {
            vm,
            because: Some(event(7, "VM web starts on n1")),
            last_move: None,
            held: Some("operation 0123 is moving it already".into()),
            nodes: vec![
                place("n1", true, &[]),
                place("n2", false, &["n2 has no QEMU", "it needs 256 MiB of memory, 12 MiB are free there"]),
                place("n3", false, &[]),
            ],
            troubles: Vec::new(),
            lately: vec![event(6, "VM web was created on n1"), event(7, "VM web starts on n1")],
        };
        insta::assert_snapshot!(text(&why, NOW));
    }
}
