//! `pollux node remove`: a host leaves for good.

use std::collections::BTreeMap;

use clap::Args;
use pollux_api::{Health, Lost, NodeView, Phase, RemoveNode, RemovedView, VmView};

use super::{
    Context,
    confirm::confirm,
    exit::{Exit, Failure},
    output::{list, show},
    suggest,
};

pub(crate) const STORY: &str = "Remove a node from the cluster for good.

Its identity never comes back: its certificate and its number are refused from then on, by every node and for ever. Its daemon ends
with it, and says why. To use the host again, remove its state directory and let it join as a new node, with a new token.

A node that runs VMs is not removed: migrate them away or stop them first. Stopped VMs that have their home there get one on the
node that answers. A node that joined and never started can be removed at any time; so can a dead one that has no VMs.

--lost --operator WHO is for a host that is gone for good and took VMs with it. Only a person can know that. Every VM that it had
the right to run becomes nobody's, wanted stopped, and can be started elsewhere (`pollux vm start NAME --node OTHER`, a fresh boot)
or deleted. A VM that had just been handed to it goes on at its source. The cluster takes your word only while it does not hear that
node's daemon.

DANGER: by --lost you assert that the host is OFF: powered down, or cut off from every network and storage for good. If it still runs,
cut off from the cluster but not from the users, the VMs that you start elsewhere run TWICE. What their guests did there is lost.";

/// Which node, and on whose word.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The node's name.
    name: String,
    /// Its host is off for good; release the VMs that it had the right to run. Read `pollux node remove --help` first.
    #[arg(long, requires = "operator")]
    lost: bool,
    /// Who says that the host is off: your name, recorded in the cluster's log.
    #[arg(long, value_name = "WHO", requires = "lost")]
    operator: Option<String>,
    /// Do not ask for the node's name to be typed.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context, verb: Remove) -> Result<(), Failure> {
    let client = &context.client;
    let node = match client.node(&verb.name).await {
        Ok(node) => node,
        Err(error) => return Err(suggest::for_node(client, &verb.name, error).await),
    };
    let mut vms = client.vms().await?;
    vms.retain(|vm| vm.node.as_ref() == Some(&node.name));
    let lost = match verb.operator.filter(|_| verb.lost) {
        Some(operator) => {
            let seen: BTreeMap<String, u64> = vms.iter().map(|vm| (vm.name.clone(), vm.generation)).collect();
            Some(Lost { operator, vms: seen })
        }
        None => None,
    };
    if let Some(refusal) = in_vain(&node, &vms, lost.is_some()) {
        return Err(refusal);
    }
    if !verb.yes {
        let once = if lost.is_some() { "once the host is off" } else { "if you are sure" };
        confirm(&warning(&node, &vms, lost.is_some()), "node", &node.name, once)?;
    }
    let request = RemoveNode { incarnation: node.incarnation, lost };
    let view = client.remove_node(&verb.name, &request).await?;
    show(context.format, &view, told)
}

/// What can only be refused is refused before anybody is asked to type a name.
fn in_vain(node: &NodeView, vms: &[VmView], lost: bool) -> Option<Failure> {
    let name = &node.name;
    if lost && matches!(node.health, Health::Alive | Health::Suspect) {
        let why = format!("node {name} is not lost: the cluster hears its daemon");
        let todo = if vms.is_empty() { "remove it without --lost" } else { "migrate its VMs away, or stop them" };
        return Some(Failure::new(Exit::Conflict, why).todo(todo));
    }
    if lost || vms.is_empty() {
        return None;
    }
    let why = format!("node {name} has the right to run {}", names(vms));
    let todo = match node.health {
        Health::Alive | Health::Suspect | Health::Unknown => {
            "migrate them away (`pollux vm migrate NAME --to NODE`) or stop them first".to_owned()
        }
        Health::Down => format!(
            "bring {name} back; if its host is lost for good: `pollux node remove {name} --lost --operator YOU` (--help says \
             what you assert by that)"
        ),
    };
    Some(Failure::new(Exit::Conflict, why).todo(todo))
}

fn warning(node: &NodeView, vms: &[VmView], lost: bool) -> String {
    let name = &node.name;
    let mut text = format!("Node {name} leaves the cluster for good; its identity never comes back.");
    if lost {
        text.push_str(&format!(
            "\nYou assert that its host is OFF. If it is not, what it runs will run TWICE.\nReleased: {}.",
            if vms.is_empty() { "nothing, it has no VMs".to_owned() } else { names(vms) }
        ));
    }
    text
}

fn names(vms: &[VmView]) -> String {
    let each = vms.iter().map(|vm| match vm.phase {
        Phase::Arriving => format!("{} (on its way there)", vm.name),
        Phase::Stopped | Phase::Running | Phase::Moving => vm.name.clone(),
    });
    let all = each.collect::<Vec<_>>().join(", ");
    if vms.len() == 1 { format!("VM {all}") } else { format!("VMs {all}") }
}

fn told(view: &RemovedView) -> String {
    let some = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let mut rows = vec![("removed", format!("{} (number {}); its identity never comes back", view.node, view.id))];
    if !view.released.is_empty() {
        rows.push(("released", some(&view.released)));
    }
    if !view.taken_back.is_empty() {
        rows.push(("goes on at its source", some(&view.taken_back)));
    }
    if !view.inherited.is_empty() {
        rows.push(("home now on", format!("{}: {}", view.heir, view.inherited.join(", "))));
    }
    let mut text = list(rows);
    if let Some(first) = view.released.first() {
        text.push_str(&format!(
            "next: start what was released where you want it, such as `pollux vm start {first} --node {}`\n",
            view.heir
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_and_what_comes_next_is_told() {
        let view = RemovedView {
            node: "n3".into(),
            id: 3,
            released: vec!["web".into(), "db".into()],
            taken_back: vec!["mail".into()],
            heir: "n1".into(),
            inherited: vec!["old".into()],
        };
        insta::assert_snapshot!(told(&view), @r"
        removed                n3 (number 3); its identity never comes back
        released               web, db
        goes on at its source  mail
        home now on            n1: old
        next: start what was released where you want it, such as `pollux vm start web --node n1`
        ");
        let plain = RemovedView { node: "n3".into(), id: 3, ..RemovedView::default() };
        insta::assert_snapshot!(told(&plain), @"removed  n3 (number 3); its identity never comes back");
    }
}
