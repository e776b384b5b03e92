//! A record as it is read back, for the commands that look at the audit.
//!
//! One type has the fields of all kinds of records, and a test compares them with those that are
//! written. The lines may be of an older or a newer version: a field that is missing or has another
//! type is `None`, and one that nobody knows is passed over.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IntoDeserializer, value},
};
use serde_json::Value;

use super::kind::RecordKind;
use crate::reason::Reason;

macro_rules! line {
    ($($(#[$attribute:meta])* $field:ident: $type:ty,)+) => {
        /// A record as it is read back. `docs/audit.md` has the meaning of each field.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[cfg_attr(test, derive(serde::Serialize))]
        #[serde(default)]
        #[expect(missing_docs, reason = "docs/audit.md has them, and a test compares both")]
        pub struct AuditLine {
            $($(#[$attribute])* #[serde(deserialize_with = "if_of_type")] pub $field: Option<$type>,)+
        }
    };
}

line! {
    time: String,
    record: String,
    version: String,
    flow: String,
    interface: String,
    group: String,
    agent: String,
    dialled: String,
    sni: String,
    host: String,
    answered: AnsweredField,
    alpn: Vec<String>,
    ech: bool,
    decision: String,
    rule: String,
    reason: String,
    cause: String,
    alert: String,
    upstream: String,
    end: String,
    bytes_from_agent: u64,
    bytes_to_agent: u64,
    duration_ms: u64,
    method: String,
    path: String,
    placeholders: Vec<String>,
    minted: Vec<String>,
    credential: String,
    upstream_status: u64,
    masked: u64,
    complete: bool,
    request_bytes: u64,
    response_bytes: u64,
    messages_from_agent: u64,
    messages_to_agent: u64,
    close_code: u64,
    server: String,
    transport: String,
    name: String,
    #[serde(rename = "type")]
    query_type: String,
    refused: u64,
    limited: u64,
    unsent: u64,
    seconds: u64,
    count: u64,
    protocol: String,
    port: u64,
    first_source: String,
    first_destination: String,
    uid: u64,
}

/// The field `answered`, which two kinds of records have with two meanings.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(untagged)]
pub enum AnsweredField {
    /// Of a connection: the names for which the agent was given the address.
    Names(Vec<String>),
    /// Of a sum of DNS queries: those that were answered.
    Count(u64),
}

impl AuditLine {
    /// Reads a line; returns `None` where it is no record.
    pub fn read(line: &[u8]) -> Option<Self> {
        Self::of(serde_json::from_slice(line).ok()?)
    }

    /// Reads a record from JSON.
    pub(crate) fn of(record: Value) -> Option<Self> {
        // By serde's rules an array would be a record, too.
        let record = Some(record).filter(Value::is_object)?;
        serde_json::from_value(record).ok()
    }

    /// Returns the kind; `None` where there is none, or only another version knows it.
    pub fn kind(&self) -> Option<RecordKind> {
        let word: value::StrDeserializer<'_, value::Error> =
            self.record.as_deref()?.into_deserializer();
        RecordKind::deserialize(word).ok()
    }

    /// Whether the decision was to refuse.
    pub fn is_refusal(&self) -> bool {
        self.decision.as_deref() == Some("refuse")
    }

    /// Returns the reason; `None` where there is none, or only another version knows it.
    pub fn known_reason(&self) -> Option<Reason> {
        let word = self.reason.as_deref()?;
        Reason::ALL.iter().copied().find(|reason| reason.as_str() == word)
    }

    /// Returns the names for which the agent was given the address, where the record is of a
    /// connection whose protocol names no host.
    pub fn answered_names(&self) -> &[String] {
        match &self.answered {
            Some(AnsweredField::Names(names)) => names,
            Some(AnsweredField::Count(_)) | None => &[],
        }
    }

    /// Returns the number of DNS queries that were answered, where the record is a sum of them.
    pub fn answered_count(&self) -> Option<u64> {
        match self.answered {
            Some(AnsweredField::Count(count)) => Some(count),
            Some(AnsweredField::Names(_)) | None => None,
        }
    }
}

fn if_of_type<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    field: D,
) -> Result<Option<T>, D::Error> {
    Value::deserialize(field).map(|value| serde_json::from_value(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_another_version_is_read_where_known() {
        let line = AuditLine::read(
            br#"{"record":"of_later","reason":"of_later","count":"many","port":-1,"sni":null,
                "new":{},"group":"a","group":"b"}"#,
        )
        .unwrap();
        assert_eq!((line.kind(), line.known_reason()), (None, None));
        assert_eq!(line.record.as_deref(), Some("of_later"));
        assert_eq!((line.count, line.port, line.sni), (None, None, None));
        assert_eq!(line.group.as_deref(), Some("b"));
    }

    #[test]
    fn a_field_of_two_meanings_is_read_by_its_type() {
        let of = |answered: &str| {
            AuditLine::read(format!("{{\"answered\":{answered}}}").as_bytes()).unwrap()
        };
        let names = of("[\"git.example\"]");
        assert_eq!((names.answered_names().len(), names.answered_count()), (1, None));
        let count = of("5");
        assert_eq!((count.answered_names().len(), count.answered_count()), (0, Some(5)));
    }

    #[test]
    fn no_object_is_no_record() {
        for line in ["", "no record", "5", "\"text\"", "[\"t\"]", "null", "{} {}"] {
            assert!(AuditLine::read(line.as_bytes()).is_none(), "{line}");
        }
        assert!(AuditLine::read(b"{}\n").is_some());
    }
}
