//! `pollux man`: a manual page for each verb, made from what the command line says of itself.
//!
//! Names, options and defaults are rendered by clap_mangen. What stands after the options in `--help` becomes examples or
//! notes, the exit codes and the way to neighbouring pages are added. Nothing of a page depends on when or where it is made.

use std::{fs, path::PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::{
    Man as Pages,
    roff::{Roff, bold, roman},
};

use super::{
    Cli,
    exit::{Exit, Failure},
    output::{Format, show},
};

pub(crate) const INSTALL: &str = "\
Install, once and again after an upgrade:
  pollux man --out /usr/local/share/man/man1 && mandb --quiet
  man pollux-vm-migrate
Only look:
  pollux man --out /tmp/pollux-man && man -l /tmp/pollux-man/pollux-vm-migrate.1";

/// Section of the manual: user commands.
const SECTION: &str = "1";

/// Where the pages go.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory to write them to; it is made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// One manual page.
struct Page {
    /// Name of its file, such as `pollux-vm-migrate.1`.
    file: String,
    text: Vec<u8>,
}

pub(crate) fn run(format: Format, verb: &Man) -> Result<(), Failure> {
    let dir = verb.out.display();
    let fault = |what: &str, error: std::io::Error| Failure::new(Exit::Internal, format!("cannot {what}: {error}"));
    let pages = pages().map_err(|error| fault("render the manual pages", error))?;
    fs::create_dir_all(&verb.out).map_err(|error| fault(&format!("make the directory {dir}"), error))?;
    for page in &pages {
        let path = verb.out.join(&page.file);
        fs::write(&path, &page.text).map_err(|error| fault(&format!("write {}", path.display()), error))?;
    }
    let files: Vec<&str> = pages.iter().map(|page| page.file.as_str()).collect();
    show(format, &serde_json::json!({ "dir": verb.out, "pages": files }), |_| {
        format!("{} manual pages are in {dir}: `man -l {}`\n", files.len(), verb.out.join("pollux.1").display())
    })
}

/// All pages: the program's, one for each noun, one for each verb.
fn pages() -> std::io::Result<Vec<Page>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    gather(&root, &[], &mut pages)?;
    Ok(pages)
}

fn gather(command: &Command, above: &[&str], pages: &mut Vec<Page>) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    pages.push(Page { file: format!("{name}.{SECTION}"), text: render(command, above)? });
    let above = [above, &[name]].concat();
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        gather(verb, &above, pages)?;
    }
    Ok(())
}

fn render(command: &Command, above: &[&str]) -> std::io::Result<Vec<u8>> {
    let source = concat!("pollux ", env!("CARGO_PKG_VERSION"));
    let page = Pages::new(command.clone()).section(SECTION).source(source).manual("Pollux Manual");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    synopsis(command).to_writer(&mut text)?;
    description(command).to_writer(&mut text)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        page.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    after_help(command).to_writer(&mut text)?;
    endings(above).to_writer(&mut text)?;
    Ok(with_one_preamble(&text))
}

/// Each part of a page comes with the definition of an apostrophe that the first one has made already.
fn with_one_preamble(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let defines = |line: &str| line.contains(".ds Aq ");
    let preamble = text.lines().take_while(|line| defines(line));
    preamble.chain(text.lines().filter(|line| !defines(line))).flat_map(|line| [line, "\n"]).collect::<String>().into()
}

fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let program = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(program), roman(usage.strip_prefix(program).unwrap_or(usage))]);
    roff
}

fn description(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    // What clap keeps of a sentence has lost its full stop.
    let stop = if about.ends_with(['.', '\n']) { "" } else { "." };
    prose(&mut roff, &format!("{about}{stop}"));
    roff
}

/// What `--help` says after the options: with lines to be typed it is examples, otherwise notes.
fn after_help(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let Some(text) = command.get_after_long_help().or_else(|| command.get_after_help()) else { return roff };
    let text = text.to_string();
    let examples = text.lines().any(|line| line.starts_with(' '));
    roff.control("SH", [if examples { "EXAMPLES" } else { "NOTES" }]);
    let heading = |line: &str| line == "Example:" || line == "Examples:";
    let rest: Vec<&str> = text.lines().skip_while(|line| heading(line)).collect();
    prose(&mut roff, &rest.join("\n"));
    roff
}

fn endings(above: &[&str]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in Exit::all() {
        roff.control("TP", []);
        roff.text([bold(code.to_string())]);
        roff.text([roman(format!("{meaning}."))]);
    }
    if !above.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        let pages: Vec<String> = above.iter().map(|page| format!("{page}({SECTION})")).collect();
        roff.text([roman(pages.join(", "))]);
    }
    roff
}

/// Sentences are filled; indented lines stay as they are; a line that ends in a colon before them is a heading.
fn prose(roff: &mut Roff, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let mut verbatim = false;
    for (at, line) in lines.iter().enumerate() {
        let indented = line.starts_with(' ');
        if indented != verbatim && !line.is_empty() {
            roff.control(if indented { "nf" } else { "fi" }, []);
            verbatim = indented;
        }
        let before_lines = lines.get(at + 1).is_some_and(|next| next.starts_with(' '));
        if line.is_empty() {
            roff.control("PP", []);
        } else if !indented && before_lines && line.ends_with(':') {
            roff.control("SS", [line.trim_end_matches(':')]);
        } else {
            roff.text([roman(*line)]);
        }
    }
    if verbatim {
        roff.control("fi", []);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn page(file: &str) -> String {
        let page = pages().unwrap().into_iter().find(|page| page.file == file);
        String::from_utf8(page.unwrap_or_else(|| panic!("there is no {file}")).text).unwrap()
    }

    #[test]
    fn every_verb_has_a_page_of_its_own_with_all_sections() {
        let mut wanted = BTreeSet::from(["pollux.1".to_owned()]);
        fn names(above: &str, command: &Command, wanted: &mut BTreeSet<String>) {
            for verb in command.get_subcommands() {
                let name = format!("{above}-{}", verb.get_name());
                names(&name, verb, wanted);
                wanted.insert(format!("{name}.1"));
            }
        }
        names("pollux", &Cli::command(), &mut wanted);
        let pages = pages().unwrap();
        assert_eq!(pages.len(), wanted.len());
        assert_eq!(pages.iter().map(|page| page.file.clone()).collect::<BTreeSet<_>>(), wanted);
        for page in &pages {
            let text = String::from_utf8(page.text.clone()).unwrap();
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"GLOBAL OPTIONS\"", "\"EXIT STATUS\""] {
                let found = text.lines().any(|line| line == format!(".SH {section}"));
                assert!(found || (section == "OPTIONS" && !text.contains("\\-\\-help")), "{}: {section}", page.file);
            }
            assert!(page.file == "pollux.1" || text.contains("SEE ALSO"), "{}", page.file);
        }
    }

    #[test]
    fn a_page_is_written_for_people() {
        insta::assert_snapshot!(page("pollux-node-join.1"));
    }

    #[test]
    fn what_is_to_be_typed_is_not_filled() {
        let text = page("pollux.1");
        let start = text.find(".SS \"A first cluster\"").unwrap();
        assert!(
            text[start..].starts_with(".SS \"A first cluster\"\n.nf\n  n1# pollux cluster init"),
            "{}",
            &text[start..]
        );
        assert_eq!(text.matches("\n.nf\n").count(), text.matches("\n.fi\n").count());
    }
}
