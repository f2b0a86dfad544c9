//! `pollux completions`: what a shell needs to complete the command line, made from the command line itself.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::shells;

use super::{Cli, exit::Failure, output};

pub(crate) const INSTALL: &str = "\
Install, once and again after an upgrade:
  pollux completions bash > /usr/share/bash-completion/completions/pollux
  pollux completions zsh > /usr/local/share/zsh/site-functions/_pollux
  pollux completions fish > /usr/share/fish/vendor_completions.d/pollux.fish
For this shell only:
  source <(pollux completions bash)";

/// For which shell.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// The shells there are completions for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(verb: &Completions) -> Result<(), Failure> {
    output::emit(&String::from_utf8_lossy(&script(verb.shell)))
}

fn script(shell: Shell) -> Vec<u8> {
    let (mut command, mut script) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    match shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, name, &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, name, &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, name, &mut script),
    }
    script
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn every_shell_is_told_every_verb() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for noun in Cli::command().get_subcommands() {
                for verb in noun.get_subcommands().chain([noun]) {
                    assert!(script.contains(verb.get_name()), "{shell:?} does not complete {}", verb.get_name());
                }
            }
        }
    }

    /// What bash offers at the Tab key after these words.
    fn offers(words: &[&str]) -> String {
        let mut bash = Command::new("bash").arg("-s").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let ask = format!(
            "COMP_WORDS=({}) COMP_CWORD={}; _pollux pollux '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1
        );
        let mut input = bash.stdin.take().unwrap();
        input.write_all(&script(Shell::Bash)).unwrap();
        input.write_all(ask.as_bytes()).unwrap();
        drop(input);
        String::from_utf8(bash.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn bash_completes_verbs_flags_and_values() {
        assert_eq!(offers(&["pollux", "vm", "mig"]), "migrate");
        assert_eq!(offers(&["pollux", "vm", "migrate", "--max-bl"]), "--max-blackout");
        assert_eq!(offers(&["pollux", "node", "list", "-o", "y"]), "yaml");
        assert_eq!(offers(&["pollux", "completions", "f"]), "fish");
        assert_eq!(offers(&["pollux", "vm", "nonsense"]), "");
    }
}
