//! `pollux vm takeback`: the one override there is, for the one case that no program can decide (DESIGN, rule 17).

use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use crate::api::types::{Phase, TakeBack, VmView};

use super::super::{
    Context,
    exit::{Exit, Failure},
    output::{note, show},
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
        confirm(&vm)?;
    }
    let request = TakeBack { operator: verb.operator, generation: vm.generation };
    let vm = client.take_back_vm(&verb.name, &request).await?;
    show(context.format, &vm, super::view::runs)
}

fn confirm(vm: &VmView) -> Result<(), Failure> {
    let target = vm.node.as_deref().unwrap_or("its target");
    let source = vm.peer.as_deref().unwrap_or("its source");
    note(&format!(
        "VM {} has been handed to {target}, which has not said that it runs. It will run on {source} again.\n\
         If {target} is not dead, it will run TWICE. Make sure that {target} is switched off.",
        vm.name
    ));
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage("there is no terminal on which to confirm this").todo("add --yes once the target is off")
        );
    }
    note(&format!("Type the VM's name ({}) to go on:", vm.name));
    let mut typed = String::new();
    io::stdin()
        .lock()
        .read_line(&mut typed)
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot read from the terminal: {error}")))?;
    if typed.trim() == vm.name { Ok(()) } else { Err(Failure::usage("that is not its name; nothing was done")) }
}
