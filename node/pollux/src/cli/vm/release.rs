//! `pollux vm release`: a VM whose host is lost for good becomes nobody's, on a person's word (DESIGN, rule 17).

use clap::Args;
use pollux_api::{Phase, ReleaseVm, VmView};

use super::super::{
    Context,
    confirm::confirm,
    exit::{Exit, Failure},
    output::show,
    suggest,
};

pub(crate) const DANGER: &str = "Override: release a VM whose host is lost for good.

A VM without protection is bound to the node that runs it. When that node is silent, nobody can know from afar whether the guest still
runs there and serves its users, so the cluster starts it nowhere else. A person who knows that the host is off can decide otherwise:
the VM becomes nobody's, wanted stopped, and can be started elsewhere (`pollux vm start NAME --node OTHER`, a fresh boot) or deleted.
The cluster takes your word only while it does not hear that node's daemon. When the daemon comes back after all, it finds that the
VM is not its own any more; nothing of it goes on there.

DANGER: by this you assert that the host is OFF. If it still runs, cut off from the cluster but not from the users, the VM will run
TWICE under the same addresses. What the guest did there is lost.

To give up the whole host: `pollux node remove NODE --lost --operator WHO`";

/// Who releases a VM.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The VM's name.
    name: String,
    /// Who says that the host is off: your name, recorded in the cluster's log.
    #[arg(long, value_name = "WHO")]
    operator: String,
    /// Do not ask for the VM's name to be typed.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context, verb: Release) -> Result<(), Failure> {
    let client = &context.client;
    let vm = match client.vm(&verb.name).await {
        Ok(vm) => vm,
        Err(error) => return Err(suggest::for_vm(client, &verb.name, error).await),
    };
    let Some(host) = vm.node.clone() else {
        let why = format!("VM {} is stopped: it is nobody's already", vm.name);
        return Err(Failure::new(Exit::Conflict, why).todo(format!("`pollux vm start {} --node NODE`", vm.name)));
    };
    if vm.phase == Phase::Arriving {
        let source = vm.peer.as_deref().unwrap_or("its source");
        crate::cli::output::note(&format!(
            "VM {} was handed to {host}, and {source} still has the copy from before: `pollux vm takeback` lets it go on \
             there. A release gives that copy up, too.",
            vm.name
        ));
    }
    if !verb.yes {
        confirm(&warning(&vm, &host), "VM", &vm.name, "once the host is off")?;
    }
    let request = ReleaseVm { operator: verb.operator, generation: vm.generation };
    let vm = client.release_vm(&verb.name, &request).await?;
    show(context.format, &vm, |vm: &VmView| {
        format!("VM {0} is nobody's now; next: `pollux vm start {0} --node NODE`, or `pollux vm delete {0}`\n", vm.name)
    })
}

fn warning(vm: &VmView, host: &str) -> String {
    format!(
        "VM {} is on {host}, which will have no right to run it any more. You assert that {host} is OFF.\n\
         If it is not, the VM will run TWICE as soon as you start it elsewhere.",
        vm.name
    )
}
