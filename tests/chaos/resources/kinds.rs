//! The kinds of resources: the configuration of the gateway, and the rules of the checker.

use std::time::Duration;

use onceward::engine::{EntityTag, VersionSource};
use onceward::key::Pointer;
use serde_json::{Value, json};

use crate::dice::Dice;

/// How long a lost write may still be executed. The latest execution of a write comes well before,
/// also if its connection was cut at once.
pub const UNCERTAIN_AFTER: Duration = Duration::from_millis(2000);

/// The latest execution of a lost write, after its arrival.
pub const LATEST: Duration = Duration::from_millis(1000);

/// Resources of each kind.
pub const EACH: usize = 4;

/// What a route does about a write in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// An operator decides.
    Hold,
    /// It asks the upstream.
    Probe,
    /// It sends the write again. The upstream deduplicates.
    Forward,
}

/// What a route does about a write that names an old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStale {
    Reject,
    Overwrite,
    Merge,
}

/// The members of a document that a patch may change.
pub const MEMBERS: [&str; 3] = ["name", "street", "phone"];

/// A kind of resource; each has its own route.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    /// Whether the tag is made of the member `version`, and the others vary.
    pub varies: bool,
    /// Whether a write needs no condition.
    pub is_optional: bool,
    pub on_stale: OnStale,
    pub doubt: Doubt,
}

/// All kinds.
pub static KINDS: [Kind; 5] = [
    Kind {
        name: "orders",
        varies: false,
        is_optional: false,
        on_stale: OnStale::Reject,
        doubt: Doubt::Hold,
    },
    Kind {
        name: "plans",
        varies: true,
        is_optional: false,
        on_stale: OnStale::Reject,
        doubt: Doubt::Probe,
    },
    Kind {
        name: "notes",
        varies: false,
        is_optional: true,
        on_stale: OnStale::Reject,
        doubt: Doubt::Forward,
    },
    Kind {
        name: "prices",
        varies: false,
        is_optional: false,
        on_stale: OnStale::Overwrite,
        doubt: Doubt::Hold,
    },
    Kind {
        name: "profiles",
        varies: false,
        is_optional: false,
        on_stale: OnStale::Merge,
        doubt: Doubt::Hold,
    },
];

impl Kind {
    /// Returns the tag of a document, as the gateway shows it.
    pub fn tag(&self, document: &[u8]) -> Option<String> {
        let versions = match self.varies {
            true => VersionSource::Member(Pointer::parse("/version").unwrap()),
            false => VersionSource::Hash,
        };
        let field = EntityTag::of_representation(&versions, document)?.to_field()?;
        Some(field.to_str().unwrap().to_owned())
    }

    /// Returns the tag of a document of the ledger.
    pub fn tag_of(&self, document: &Value) -> Option<String> {
        self.tag(document.to_string().as_bytes())
    }

    pub fn overwrites(&self) -> bool {
        self.on_stale == OnStale::Overwrite
    }

    fn toml(&self) -> String {
        let Kind { name, varies, is_optional, on_stale, doubt } = self;
        let versions = if *varies { "{ body = \"/version\" }" } else { "\"hash\"" };
        let if_match = if *is_optional { "optional" } else { "required" };
        let on_stale = match on_stale {
            OnStale::Reject => "reject",
            OnStale::Overwrite => "overwrite",
            OnStale::Merge => "merge",
        };
        let doubt = match doubt {
            Doubt::Hold => "",
            Doubt::Probe => {
                "on_uncertain = \"probe\"\nprobe = { method = \"GET\", path = \"/by-write/{key}\", \
                 found = [\"200\"], absent = [\"404\"] }\n"
            }
            Doubt::Forward => "on_uncertain = \"forward\"\n",
        };
        format!(
            "[[routes]]\nname = \"{name}\"\npath = \"/v1/{name}/{{id}}\"\n\
             methods = [\"GET\", \"HEAD\", \"PUT\", \"PATCH\", \"DELETE\"]\n\
             lease = \"2s\"\nuncertain_after = \"{}ms\"\non_stale = \"{on_stale}\"\n{doubt}\
             resource = {{ versions = {versions}, if_match = \"{if_match}\", \
             lock_timeout = \"1500ms\", per = [\"header:X-Tenant\"] }}\n",
            UNCERTAIN_AFTER.as_millis()
        )
    }
}

/// Returns the tables of all routes.
pub fn routes() -> String {
    KINDS.iter().map(Kind::toml).collect()
}

/// Returns the whole document that a write writes.
pub fn document(id: &str) -> Value {
    let mut document = json!({ "by": id, "version": id });
    MEMBERS.iter().for_each(|member| document[*member] = json!(id));
    document
}

/// Returns all resources, with their kinds.
pub fn resources() -> Vec<(&'static Kind, String)> {
    let of =
        |kind: &'static Kind| (0..EACH).map(move |n| (kind, format!("/v1/{}/r{n}", kind.name)));
    KINDS.iter().flat_map(of).collect()
}

/// Returns one of the spellings of a path.
pub fn spelled(path: &str, dice: &mut Dice) -> String {
    let (start, last) = path.split_at(path.len() - 1);
    match dice.within(0..10) {
        0 => format!("{path}/"),
        1 => format!("{start}%{:02X}", last.as_bytes()[0]),
        2 => path.replace("/r", "/%72"),
        3 => format!("{path}?view={}", dice.within(0..3)),
        _ => path.to_owned(),
    }
}
