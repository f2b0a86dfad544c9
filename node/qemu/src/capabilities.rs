//! What the QEMU of this host can emulate, asked of QEMU itself: machine types, and what a CPU model would lack.
//!
//! Asked anew each time, of a process without a guest that ends at once: a QEMU that was replaced under a running daemon
//! answers for itself.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::Accelerator;

/// How long QEMU may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// QEMU could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be run, or not be talked to.
    #[error("QEMU cannot be asked what it can do")]
    Run(#[source] std::io::Error),
    /// It did not answer.
    #[error("QEMU did not say what it can do within {DEADLINE:?}")]
    Silent,
}

/// Something that a machine would need and this QEMU does not have: one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Its machine type.
    Machine(String),
    /// Its CPU model, or features of it.
    Cpu(String),
}

/// Why a machine type with a CPU model cannot be had of this QEMU; empty: it can.
///
/// # Errors
/// [`AskError`].
pub async fn what_is_missing(
    binary: &Path,
    accelerator: Accelerator,
    machine: &str,
    cpu: &str,
) -> Result<Vec<Lack>, AskError> {
    let (model, wanted) = split(cpu);
    // All that there is to be had: what a model is expanded to says only what was asked for.
    let expansion = json!({ "type": "full", "model": { "name": "max" } });
    let commands = [
        json!({ "execute": "qmp_capabilities", "id": "greet" }),
        json!({ "execute": "query-machines", "id": "machines" }),
        json!({ "execute": "query-cpu-definitions", "id": "cpus" }),
        json!({ "execute": "query-cpu-model-expansion", "arguments": expansion, "id": "max" }),
        json!({ "execute": "quit", "id": "quit" }),
    ];
    let answers = ask(binary, accelerator, &commands).await?;
    let of = |id: &str| answers.iter().find(|answer| answer["id"] == id);
    let mut missing = Vec::new();
    if let Some(machines) = of("machines").and_then(|answer| answer["return"].as_array())
        && !machines.iter().any(|known| known["name"] == machine || known["alias"] == machine)
    {
        missing.push(Lack::Machine(format!("its QEMU has no machine type {machine}")));
    }
    if let Some(cpus) = of("cpus").and_then(|answer| answer["return"].as_array()) {
        let known = cpus.iter().find(|known| known["name"] == model);
        match known {
            None if !cpus.is_empty() => missing.push(Lack::Cpu(format!("its QEMU has no CPU model {model}"))),
            _ => missing.extend(lacking(known, of("max"), &model, &wanted).map(Lack::Cpu)),
        }
    }
    Ok(missing)
}

/// What the host cannot give of a model that QEMU knows; `max` is all that it can give.
fn lacking(known: Option<&Value>, max: Option<&Value>, model: &str, wanted: &[(String, bool)]) -> Option<String> {
    let mut lacks: Vec<String> = known
        .and_then(|known| known["unavailable-features"].as_array())
        .into_iter()
        .flatten()
        .filter_map(|feature| feature.as_str().map(str::to_owned))
        // QEMU names the model itself when it is of another kind of processor; that is said by the features.
        .filter(|feature| feature != "type")
        .collect();
    let props = max.map(|answer| &answer["return"]["model"]["props"]);
    for (name, _) in wanted.iter().filter(|(_, on)| *on) {
        let underscored = name.replace('-', "_");
        let given = props.map(|props| &props[name]).filter(|value| !value.is_null());
        let given = given.or_else(|| props.map(|props| &props[&underscored]));
        if given.is_some_and(|value| value == &json!(false)) && !lacks.contains(name) {
            lacks.push(name.clone());
        }
    }
    // What is switched off in the VM need not be there.
    lacks.retain(|feature| !wanted.iter().any(|(name, on)| name == feature && !on));
    lacks.sort();
    (!lacks.is_empty()).then(|| format!("it cannot give CPU model {model} these features: {}", lacks.join(", ")))
}

/// `qemu64,+ssse3,-svm` as the model and its switches.
fn split(cpu: &str) -> (String, Vec<(String, bool)>) {
    let mut parts = cpu.split(',').map(str::trim);
    let model = parts.next().unwrap_or_default().to_owned();
    let switches = parts.filter_map(|part| match part.split_at_checked(1) {
        Some(("+", name)) => Some((name.to_owned(), true)),
        Some(("-", name)) => Some((name.to_owned(), false)),
        _ => match part.split_once('=') {
            Some((name, "on")) => Some((name.to_owned(), true)),
            Some((name, "off")) => Some((name.to_owned(), false)),
            _ => None,
        },
    });
    (model, switches.collect())
}

async fn ask(binary: &Path, accelerator: Accelerator, commands: &[Value]) -> Result<Vec<Value>, AskError> {
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let mut command = tokio::process::Command::new(binary);
    command
        .args(["-machine", "none", "-accel", accelerator, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let talk = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let lines: String = commands.iter().map(|command| format!("{command}\n")).collect();
            stdin.write_all(lines.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(DEADLINE, talk).await.map_err(|_| AskError::Silent)?.map_err(AskError::Run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_told_from_its_switches() {
        let switch = |name: &str, on| (name.to_owned(), on);
        let (model, switches) = split("Skylake-Server,+ssse3, -svm,avx=on,hle=off");
        assert_eq!(model, "Skylake-Server");
        let expected = [switch("ssse3", true), switch("svm", false), switch("avx", true), switch("hle", false)];
        assert_eq!(switches, expected);
    }

    #[test]
    fn what_is_switched_off_is_not_missed() {
        let known = json!({ "unavailable-features": ["hle", "rtm"] });
        let off = [("hle".to_owned(), false)];
        let text = lacking(Some(&known), None, "Skylake", &off).expect("rtm is missing");
        assert!(text.contains("rtm") && !text.contains("hle"), "{text}");
    }

    #[test]
    fn what_is_switched_on_must_be_there() {
        let known = json!({ "unavailable-features": [] });
        let max = json!({ "return": { "model": { "props": { "ssse3": true, "avx512f": false } } } });
        let lacks = |name: &str| lacking(Some(&known), Some(&max), "qemu64", &[(name.to_owned(), true)]);
        assert_eq!(lacks("ssse3"), None);
        assert!(lacks("avx512f").is_some_and(|text| text.contains("avx512f")));
    }
}
