//! Reasons why an embedded store can't be opened, for the person who starts the gateway: the fault,
//! the ways out, and the loss that each of them means.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::layout::{FILE, LAYOUT_VERSION, UNFINISHED};

/// Error of opening an embedded store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the folder.
    #[error("{dir} can't be opened: another process has it")]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder can't be created, read or locked.
    #[error("{dir} can't be used as the store's folder: {source}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file can't be opened, or is not a store.
    #[error("the store's file can't be opened: {0}")]
    File(#[from] Box<redb::Error>),
    /// Another version of this program wrote the file.
    #[error("the store's file has layout {found}, which this version doesn't know")]
    Layout {
        /// The layout found.
        found: u64,
    },
    /// The directory can't be opened. The text lists the ways out.
    #[error(transparent)]
    Unusable(Box<Unusable>),
    /// The writer's thread can't be started.
    #[error("the store's thread can't be started: {0}")]
    Thread(std::io::Error),
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> OpenError {
        OpenError::File(Box::new(error))
    }
}

/// A directory that can't be opened as a store.
#[derive(Debug)]
pub struct Unusable {
    dir: PathBuf,
    trouble: Trouble,
    /// The text of the error that caused it.
    detail: String,
}

/// The fault of a directory that can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Another process uses the directory.
    InUse,
    /// This process may not read or write the directory.
    NoRights,
    /// The file system is read-only.
    ReadOnly,
    /// The disk, or the user's quota, is full.
    Full,
    /// The file is damaged.
    Damaged,
    /// A newer version wrote the file, with this layout.
    Newer(u64),
    /// The directory holds an unfinished copy.
    Unfinished,
    /// The disk or the path failed in another way.
    Failing,
}

impl OpenError {
    /// Adds the directory and the ways out, for the person who configured it.
    pub(super) fn in_dir(self, dir: &Path) -> OpenError {
        let (trouble, detail) = match &self {
            OpenError::Busy { .. } => (Trouble::InUse, String::new()),
            OpenError::Folder { source, .. } => (Trouble::of_io(source.kind()), source.to_string()),
            OpenError::File(error) => (Trouble::of_file(error), error.to_string()),
            OpenError::Layout { found: UNFINISHED } => (Trouble::Unfinished, String::new()),
            OpenError::Layout { found } => (Trouble::Newer(*found), String::new()),
            OpenError::Unusable(_) | OpenError::Thread(_) => return self,
        };
        OpenError::Unusable(Box::new(Unusable { dir: dir.to_owned(), trouble, detail }))
    }
}

impl Trouble {
    fn of_file(error: &redb::Error) -> Trouble {
        match error {
            redb::Error::DatabaseAlreadyOpen => Trouble::InUse,
            redb::Error::Io(error) => Trouble::of_io(error.kind()),
            redb::Error::Backend(error) => error
                .downcast_ref::<std::io::Error>()
                .map_or(Trouble::Damaged, |error| Trouble::of_io(error.kind())),
            _ => Trouble::Damaged,
        }
    }

    fn of_io(kind: ErrorKind) -> Trouble {
        match kind {
            ErrorKind::PermissionDenied => Trouble::NoRights,
            ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Full,
            ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Trouble::Damaged,
            _ => Trouble::Failing,
        }
    }

    /// Describes the fault for people.
    fn describe(self) -> String {
        match self {
            Trouble::InUse => "another process uses it (a gateway, or a copy)".into(),
            Trouble::NoRights => "this process has no right to read and write it".into(),
            Trouble::ReadOnly => "its file system takes no writes".into(),
            Trouble::Full => "its disk is full".into(),
            Trouble::Damaged => "the file is damaged, or another program wrote it".into(),
            Trouble::Newer(found) => {
                format!(
                    "a newer version wrote it (layout {found}; this version knows {LAYOUT_VERSION})"
                )
            }
            Trouble::Unfinished => "it holds a copy that isn't finished".into(),
            Trouble::Failing => "the disk or the path fails".into(),
        }
    }

    /// Lists the ways out, and the loss that each of them means.
    fn ways_out(self, dir: &Path) -> String {
        let dir = dir.display();
        match self {
            Trouble::InUse => {
                "End that process: nothing is lost. Another directory is another store, in which every key is new.".into()
            }
            Trouble::NoRights => format!("Give {dir} and its files to the user of this process (chown -R): nothing is lost."),
            Trouble::ReadOnly => format!(
                "Mount it for writing: nothing is lost. Or copy {dir} to another disk, and name that as the store's directory: \
                 nothing is lost as long as nobody goes on with this one."
            ),
            Trouble::Full => format!(
                "Make room: nothing is lost. Or move the store: `onceward store copy file:{dir} file:OTHER`, and name OTHER as the \
                 store's directory: nothing is lost as long as nobody goes on with this one."
            ),
            Trouble::Damaged => format!(
                "Copy {dir} elsewhere before anything else. Then put a back-up in its place: what was executed since that back-up is \
                 unknown, and its duplicates run again. Or name an empty directory: every key is new, and every duplicate runs \
                 again. Look those up at the upstream."
            ),
            Trouble::Newer(_) => {
                "Start that version again: nothing is lost. An empty directory is another store, in which every key \
                is new: duplicates of what was executed run again."
                    .into()
            }
            Trouble::Unfinished => format!(
                "Run the same `onceward store copy` again: it goes on where it ended. Or remove {dir} and copy anew. The store that is \
                 copied from still has everything."
            ),
            Trouble::Failing => format!(
                "Look at the path, the disk and the kernel's log; the file may be whole. If the disk fails, copy {dir} to another one \
                 and name that as the store's directory: nothing is lost if the copy succeeds."
            ),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.dir.join(FILE);
        write!(f, "the store {} can't be opened: {}", file.display(), self.trouble.describe())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail.trim_end_matches('.'))?;
        }
        write!(f, ". {}", self.trouble.ways_out(&self.dir))
    }
}

impl std::error::Error for Unusable {}

impl Unusable {
    /// Returns the fault.
    pub fn trouble(&self) -> Trouble {
        self.trouble
    }
}
