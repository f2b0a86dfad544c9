//! `pollux vm`: virtual machines.

mod console;
mod create;
mod log;
mod migrate;
mod release;
mod spec;
mod takeback;
mod view;
mod wait;
mod why;

use std::time::Duration;

use clap::{Args, Subcommand};
use pollux_api::{ApiError, ErrorKind, StartVm, StopVm};

use super::{
    Context,
    exit::Failure,
    output::{now_ms, show},
    suggest,
};

/// Verbs about VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Create a VM from flags or a TOML file, and start it.
    #[command(after_help = create::EXAMPLES)]
    Create(Box<create::Create>),
    /// Want a VM running.
    Start(Start),
    /// Want a VM stopped, and wait until it is.
    #[command(after_help = "Without --force the guest is asked to switch itself off, as by its power button.")]
    Stop(Stop),
    /// All VMs.
    List,
    /// One VM.
    Show {
        /// Its name.
        name: String,
    },
    /// What a VM wrote to its serial console: the last 64 KiB, as the guest wrote them.
    Log {
        /// Its name.
        name: String,
        /// Go on with what it writes from now on, until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
    },
    /// Sit down at a VM's serial console, wherever it runs, and stay there while it moves.
    #[command(after_help = console::EXAMPLES)]
    Console(console::Console),
    /// Why a VM is where it is, and for each node whether it could be there, or why not.
    #[command(after_help = why::NOTE)]
    Why {
        /// Its name.
        name: String,
    },
    /// Move a running VM to another node without stopping it, and follow the move.
    #[command(after_help = migrate::EXAMPLES)]
    Migrate(migrate::Migrate),
    /// Forget a stopped VM.
    Delete {
        /// Its name.
        name: String,
    },
    /// Override: give a VM back to its source when the target of its move won it and then died. Read on before use.
    #[command(long_about = takeback::DANGER)]
    Takeback(takeback::Takeback),
    /// Override: release a VM whose host is lost for good, so that it can be started elsewhere. Read on before use.
    #[command(long_about = release::DANGER)]
    Release(release::Release),
}

/// How a VM is started.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Its name.
    name: String,
    /// On this node from now on; without it where it was last.
    #[arg(long)]
    node: Option<String>,
    /// Wait until the guest runs.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How a VM is stopped.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Its name.
    name: String,
    /// Pull the plug: the guest is not asked and what it has not written is lost.
    #[arg(long)]
    force: bool,
    /// How long to wait for the guest to switch itself off. Afterwards it is still wanted stopped.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(context: &Context, verb: Vm) -> Result<(), Failure> {
    match verb {
        Vm::Create(create) => create::run(context, *create).await,
        Vm::Start(verb) => start(context, verb).await,
        Vm::Stop(verb) => stop(context, verb).await,
        Vm::List => context.show_read(&context.client.vms().await?, |vms| view::many(vms, now_ms())),
        Vm::Show { name } => match context.client.vm(&name).await {
            Ok(vm) => context.show_read(&vm, |vm| view::single(vm, now_ms())),
            Err(error) => Err(suggest::for_vm(&context.client, &name, error).await),
        },
        Vm::Log { name, follow } => log::run(context, &name, follow).await,
        Vm::Why { name } => why::run(context, &name).await,
        Vm::Console(verb) => console::run(context, &verb).await,
        Vm::Migrate(verb) => migrate::run(context, verb).await,
        Vm::Delete { name } => match context.client.delete_vm(&name).await {
            Ok(vm) => show(context.format, &vm, |vm| format!("VM {} is deleted\n", vm.name)),
            Err(error) => Err(suggest::for_vm(&context.client, &name, error).await),
        },
        Vm::Takeback(verb) => takeback::run(context, verb).await,
        Vm::Release(verb) => release::run(context, verb).await,
    }
}

async fn start(context: &Context, verb: Start) -> Result<(), Failure> {
    let client = &context.client;
    let request = StartVm { node: verb.node.clone() };
    let accepted = match client.start_vm(&verb.name, &request).await {
        Ok(vm) => vm,
        Err(error) => return Err(wrong_name(context, &verb.name, verb.node.as_deref(), error).await),
    };
    if verb.wait {
        let vm = wait::until_running(client, accepted, verb.timeout).await?;
        return show(context.format, &vm, view::runs);
    }
    show(context.format, &accepted, |vm| format!("VM {} is to run on {}\n", vm.name, vm.home))
}

async fn stop(context: &Context, verb: Stop) -> Result<(), Failure> {
    let client = &context.client;
    let accepted = match client.stop_vm(&verb.name, &StopVm { force: verb.force }).await {
        Ok(vm) => vm,
        Err(error) => return Err(suggest::for_vm(client, &verb.name, error).await),
    };
    let vm = wait::until_stopped(client, accepted, verb.force, verb.timeout).await?;
    show(context.format, &vm, |vm| format!("VM {} is stopped\n", vm.name))
}

/// A request named a VM and perhaps a node: suggest for the one that does not exist. Which one it is, the names there are say
/// more surely than the error's words.
async fn wrong_name(context: &Context, vm: &str, node: Option<&str>, error: ApiError) -> Failure {
    let client = &context.client;
    match node {
        Some(node) if error.kind == ErrorKind::NotFound && client.vm(vm).await.is_ok() => {
            suggest::for_node(client, node, error).await
        }
        Some(_) | None => suggest::for_vm(client, vm, error).await,
    }
}
