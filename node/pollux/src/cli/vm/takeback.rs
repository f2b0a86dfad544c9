//! `pollux vm takeback`: the override for a move whose target won and fell silent, which no program can decide (DESIGN, rule 17).

use clap::Args;
use pollux_api::{Phase, TakeBack, VmView};

use super::super::{
    Context,
    confirm::confirm,
    exit::{Exit, Failure},
    output::show,
    suggest,
};

pub(crate) const DANGER: &str = "Override: give a VM back to the source of its move.

A move ends with one decision: from then on the target has the right to run the VM, and the source keeps its copy, paused, until
the target says that the guest runs. If the target dies in between, nobody can know from afar whether the guest ran there. It may
have answered somebody. So the VM waits for the target to come back, which settles it by itself, and only a person who knows that
the target is dead can decide otherwise.

DANGER: if the target still runs, two copies of the VM run at the same time, under the same addresses. Switch the target off, or
cut its power, before you use this. What the guest did there since the switch is lost.";

/// Who takes a VM back.
#[derive(Debug, Args)]
pub(crate) struct Takeback {
    /// The VM's name.
    name: String,
    /// Who says that the target is dead: your name, recorded in the cluster's log.
    #[arg(long, value_name = "WHO")]
    operator: String,
    /// Do not ask for the VM's name to be typed.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context, verb: Takeback) -> Result<(), Failure> {
    let client = &context.client;
    let vm = match client.vm(&verb.name).await {
        Ok(vm) => vm,
        Err(error) => return Err(suggest::for_vm(client, &verb.name, error).await),
    };
    if vm.phase != Phase::Arriving {
        return Err(Failure::new(
            Exit::Conflict,
            format!("VM {} is not on its way: there is nothing to take back", vm.name),
        )
        .todo(format!("`pollux vm show {}` says what it does", vm.name)));
    }
    if !verb.yes {
        confirm(&warning(&vm), "VM", &vm.name, "once the target is off")?;
    }
    let request = TakeBack { operator: verb.operator, generation: vm.generation };
    let vm = client.take_back_vm(&verb.name, &request).await?;
    show(context.format, &vm, super::view::runs)
}

fn warning(vm: &VmView) -> String {
    let target = vm.node.as_deref().unwrap_or("its target");
    let source = vm.peer.as_deref().unwrap_or("its source");
    format!(
        "VM {} has been handed to {target}, which has not said that it runs. It will run on {source} again.\n\
         If {target} is not dead, it will run TWICE. Make sure that {target} is switched off.",
        vm.name
    )
}
