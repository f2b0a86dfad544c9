//! What is printed: tables that a person reads without borders, JSON or YAML that a script reads, ages, sizes.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::exit::{Exit, Failure};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts: one JSON value on standard output, errors as one JSON object on standard error.
    Json,
    /// The same values as YAML.
    Yaml,
}

/// Narrowest terminal that tables are fitted to, in columns.
const WIDTH_MIN: u16 = 60;
/// Space between columns.
const GAP: u16 = 2;

/// Write to standard output. `false`: nobody reads any more (`| head`), which is no failure.
pub(crate) fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Internal, format!("cannot write to standard output: {error}"))),
    }
}

/// Print to standard output.
pub(crate) fn emit(text: &str) -> Result<(), Failure> {
    write(text.as_bytes()).map(drop)
}

/// Go on until Ctrl-C, which is how it is meant to end.
pub(crate) async fn until_interrupted(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// A value as a script wants it.
fn encode<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<String, Failure> {
    let fault = |error: String| Failure::new(Exit::Internal, format!("the result does not encode: {error}"));
    match format {
        Format::Table => Ok(text(value)),
        Format::Json => {
            serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| fault(error.to_string()))
        }
        Format::Yaml => yaml(value).map_err(|error| fault(error.to_string())),
    }
}

/// Print a value: as a text for people, or whole for scripts.
pub(crate) fn show<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    emit(&encode(format, value, text)?)
}

/// One of a stream of values without an end: a line of text, a line of JSON, or a YAML document.
pub(crate) fn streamed<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match format {
        Format::Table => Ok(text(value)),
        Format::Json => Ok(format!("{}\n", serde_json::json!(value))),
        Format::Yaml => Ok(format!("---\n{}", encode(format, value, text)?)),
    }
}

/// Each string on one line, so that `grep` finds what belongs together.
fn yaml(value: &impl Serialize) -> Result<String, serde_saphyr::ser_error::Error> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options)
}

/// Say something to the person, not to the script.
pub(crate) fn note(text: &str) {
    // Nobody is there to be told that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Say what went wrong.
pub(crate) fn complain(format: Format, failure: &Failure) {
    let value = serde_json::json!({
        "error": failure.message, "todo": failure.todo, "exit_code": failure.exit.code(),
    });
    match format {
        Format::Json => note(&value.to_string()),
        // What cannot be written as YAML is said all the same.
        Format::Yaml => note(yaml(&value).unwrap_or_else(|_| value.to_string()).trim_end()),
        Format::Table => {
            note(&format!("pollux: {}", failure.message));
            if !failure.todo.is_empty() {
                note(&format!("  to do: {}", failure.todo));
            }
        }
    }
}

/// A table of rows under a head. `right` names the columns that hold numbers.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    render(Some(&head.map(str::to_owned)), right, rows.into_iter().map(Vec::from).collect(), width())
}

/// Names and values, one a line.
pub(crate) fn list(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    render(None, &[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect(), width())
}

/// The columns of the terminal on standard output; nothing is fitted when there is none.
fn width() -> Option<u16> {
    io::stdout()
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(io::stdout()).ok())?
        .map(|size| size.ws_col.max(WIDTH_MIN))
}

fn render(head: Option<&[String]>, right: &[usize], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    if let Some(head) = head {
        table.set_header(head);
    }
    for row in rows {
        // An empty cell would move the reader's eye, and `cut`, to the wrong column.
        table.add_row(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long before `now` something was, both in milliseconds since 1970. Clocks differ; the future counts as now.
pub(crate) fn age(now: u64, then: u64) -> String {
    span(now.saturating_sub(then))
}

/// [`span`], of a limit that somebody gave.
pub(crate) fn span_of(limit: Duration) -> String {
    span(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// A length of time in its two largest units.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// A moment by the calendar.
pub(crate) fn moment(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// An amount of bytes in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = count.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths < 1000 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}

/// An amount of MiB.
pub(crate) fn mib(count: u64) -> String {
    bytes(count.saturating_mul(1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![
            vec!["web".into(), "7".into(), "running".into()],
            vec!["database".into(), "12".into(), String::new()],
            vec![
                "c".into(),
                "1".into(),
                "stopped: the guest switched itself off and said nothing more about it".into(),
            ],
        ]
    }

    #[test]
    fn a_table_is_aligned_and_has_no_borders_and_no_holes() {
        let head = ["NAME".to_owned(), "GEN".to_owned(), "STATE".to_owned()];
        insta::assert_snapshot!(render(Some(&head), &[1], rows(), None), @r"
        NAME      GEN  STATE
        web         7  running
        database   12  -
        c           1  stopped: the guest switched itself off and said nothing more about it
        ");
    }

    #[test]
    fn a_table_fits_a_narrow_terminal() {
        let head = ["NAME".to_owned(), "GEN".to_owned(), "STATE".to_owned()];
        let text = render(Some(&head), &[1], rows(), Some(WIDTH_MIN));
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH_MIN)), "{text}");
        assert!(text.contains("nothing more"), "{text}");
    }

    #[test]
    fn yaml_keeps_strings_strings_and_each_on_its_line() {
        let value = serde_json::json!({
            "name": "web", "text": "a: b # c\nnext", "empty": "", "number": "0123", "yes": "yes", "null": null, "list": [1, "-"],
            "none": [], "exponent": "12e5", "long": "x ".repeat(60).trim_end(), "since": 1_700_000_000_000_u64, "rate": 0.5,
        });
        insta::assert_snapshot!(yaml(&value).unwrap());
        assert_eq!(streamed(Format::Yaml, &"x", |_| String::new()).unwrap(), "---\nx\n");
        assert_eq!(streamed(Format::Json, &"x", |_| String::new()).unwrap(), "\"x\"\n");
    }

    #[test]
    fn times_are_told_in_their_two_largest_units() {
        let spans: Vec<String> = [0, 999, 1_000, 59_999, 60_000, 3_599_000, 3_600_000, 90_000_000].map(span).into();
        assert_eq!(spans, ["0ms", "999ms", "1s", "59s", "1m00s", "59m59s", "1h00m", "1d01h"]);
        assert_eq!(age(5_000, 9_000), "0ms", "another node's clock may be ahead");
    }

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        let sizes: Vec<String> = [0, 1023, 1024, 1536, 100 << 20, 3 << 30, u64::MAX].map(bytes).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "100 MiB", "3.0 GiB", "1638 PiB"]);
    }
}
