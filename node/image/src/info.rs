//! What `qemu-img info` says of an image, and whether that is what its header says. Pure.

use serde::Deserialize;
use serde_json::Value;

use crate::header::{Header, Refused};

/// Part of what `qemu-img info --output=json` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    full_backing_filename: Option<String>,
    #[serde(default)]
    format_specific: Option<Value>,
    #[serde(default)]
    children: Vec<Child>,
}

#[derive(Debug, Deserialize)]
struct Child {
    name: String,
}

/// Refuses what is not what `header` promised, or needs more than itself.
pub(crate) fn check(text: &[u8], header: &Header) -> Result<(), Refused> {
    let broken = |why| Refused::Broken { format: header.format, why };
    let info: Info =
        serde_json::from_slice(text).map_err(|_| broken("qemu-img describes it in no way that is known"))?;
    if info.format != header.format.word() {
        return Err(Refused::Deceitful { what: "its format" });
    }
    // What is no whole number of sectors is read as if it were.
    if info.virtual_size.next_multiple_of(512) != header.size.next_multiple_of(512) {
        return Err(Refused::Deceitful { what: "its size" });
    }
    if info.encrypted {
        return Err(Refused::Encrypted);
    }
    if info.backing_filename.is_some() || info.full_backing_filename.is_some() {
        return Err(Refused::BackingFile);
    }
    let data = info.format_specific.as_ref().and_then(|specific| specific.get("data"));
    let has = |what: &str| data.and_then(|data| data.get(what)).is_some_and(|value| !value.is_null());
    if has("encrypt") {
        return Err(Refused::Encrypted);
    }
    if data.and_then(|data| data.get("corrupt")) == Some(&Value::Bool(true)) {
        return Err(Refused::Corrupt);
    }
    let parts = data.and_then(|data| data.get("extents")).and_then(Value::as_array).map_or(1, Vec::len);
    // Older versions do not tell of children.
    if has("data-file") || parts > 1 || info.children.iter().any(|child| child.name != "file") {
        return Err(Refused::OtherFiles);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Format;

    const HEADER: Header = Header { format: Format::Qcow2, size: 10 << 20 };

    fn told(more: &str) -> Result<(), Refused> {
        check(format!(r#"{{"format":"qcow2","virtual-size":10485760{more}}}"#).as_bytes(), &HEADER)
    }

    #[test]
    fn what_qemu_reads_must_be_what_the_header_says() {
        assert_eq!(told(""), Ok(()));
        assert_eq!(
            told(
                r#","children":[{"name":"file","info":{}}],"format-specific":{"type":"qcow2","data":{"corrupt":false}}"#
            ),
            Ok(())
        );
        assert_eq!(told(r#","children":[{"name":"file"},{"name":"data-file"}]"#), Err(Refused::OtherFiles));
        assert_eq!(told(r#","backing-filename":"/etc/shadow""#), Err(Refused::BackingFile));
        assert_eq!(told(r#","full-backing-filename":"/etc/shadow""#), Err(Refused::BackingFile));
        assert_eq!(told(r#","encrypted":true"#), Err(Refused::Encrypted));
        assert_eq!(told(r#","format-specific":{"data":{"encrypt":{"format":"luks"}}}"#), Err(Refused::Encrypted));
        assert_eq!(told(r#","format-specific":{"data":{"data-file":"x"}}"#), Err(Refused::OtherFiles));
        assert_eq!(told(r#","format-specific":{"data":{"extents":[{},{}]}}"#), Err(Refused::OtherFiles));
        assert_eq!(told(r#","format-specific":{"data":{"corrupt":true}}"#), Err(Refused::Corrupt));
        let other = |format: &str, size: u64| {
            check(format!(r#"{{"format":"{format}","virtual-size":{size}}}"#).as_bytes(), &HEADER)
        };
        assert_eq!(other("raw", 10 << 20), Err(Refused::Deceitful { what: "its format" }));
        assert_eq!(other("qcow2", 16 << 40), Err(Refused::Deceitful { what: "its size" }));
        assert!(matches!(check(b"", &HEADER), Err(Refused::Broken { .. })));
        assert!(matches!(check(b"[]", &HEADER), Err(Refused::Broken { .. })));
    }
}
