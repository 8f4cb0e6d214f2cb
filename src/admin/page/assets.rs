//! The static files of the pages. They are part of the binary, and their names change with their
//! content.
//!
//! One of them is [htmx](https://htmx.org) 2.0.11, unchanged and with its licence.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::admin::problem::AdminRefusal;
use crate::hex;

/// A file that browsers may cache forever.
pub(super) struct Asset {
    stem: &'static str,
    extension: &'static str,
    media_type: &'static str,
    content: &'static str,
    name: LazyLock<String>,
}

macro_rules! asset {
    ($asset:ident, $stem:literal, $extension:literal, $media_type:literal, $file:literal) => {
        pub(super) static $asset: Asset = Asset {
            stem: $stem,
            extension: $extension,
            media_type: $media_type,
            content: include_str!($file),
            name: LazyLock::new(|| $asset.hashed_name()),
        };
    };
}

asset!(STYLE, "page", "css", "text/css; charset=utf-8", "assets/page.css");
asset!(SCRIPT, "page", "js", "text/javascript; charset=utf-8", "assets/page.js");
asset!(HTMX, "htmx", "js", "text/javascript; charset=utf-8", "assets/htmx.min.js");
asset!(ICON, "icon", "svg", "image/svg+xml", "assets/icon.svg");

impl Asset {
    fn hashed_name(&self) -> String {
        let hash = hex::encode(&Sha256::digest(self.content)[..8]);
        format!("{}.{hash}.{}", self.stem, self.extension)
    }

    /// Returns the file's path.
    pub(super) fn path(&self) -> String {
        format!("/assets/{}", *self.name)
    }
}

pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let Some(asset) = [&STYLE, &SCRIPT, &HTMX, &ICON].into_iter().find(|asset| *asset.name == name)
    else {
        return AdminRefusal::NotFound.into_response();
    };
    let fields = [
        (header::CONTENT_TYPE, asset.media_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (fields, asset.content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_from_the_content() {
        assert!(
            HTMX.path().starts_with("/assets/htmx.d6fdc75f204e6bde")
                && HTMX.path().ends_with(".js"),
            "{}",
            HTMX.path()
        );
    }
}
