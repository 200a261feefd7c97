//! The stylesheet and the icon, at addresses that change with their content, so that browsers may
//! keep them for ever.

use std::sync::LazyLock;

use ring::digest;

const STYLE: &str = include_str!("../../templates/static/style.css");
const ICON: &str = include_str!("../../templates/static/icon.svg");

fn hashed(stem: &str, content: &str, end: &str) -> String {
    let hash = hex::encode(digest::digest(&digest::SHA256, content.as_bytes()));
    format!("/static/{stem}-{}.{end}", hash.get(..16).unwrap_or(&hash))
}

/// Where the stylesheet is.
pub(super) fn style_url() -> &'static str {
    static URL: LazyLock<String> = LazyLock::new(|| hashed("style", STYLE, "css"));
    &URL
}

/// Where the icon is.
pub(super) fn icon_url() -> &'static str {
    static URL: LazyLock<String> = LazyLock::new(|| hashed("icon", ICON, "svg"));
    &URL
}

/// The asset at `path`: content type and content.
pub(super) fn find(path: &str) -> Option<(&'static str, &'static str)> {
    if path == style_url() {
        Some(("text/css; charset=utf-8", STYLE))
    } else if path == icon_url() {
        Some(("image/svg+xml", ICON))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assets_are_small_and_found_only_at_their_hash() {
        assert!(STYLE.len() <= 20 * 1024, "the style budget is 20 KB, it is {}", STYLE.len());
        assert!(find(style_url()).is_some());
        assert!(find("/static/style.css").is_none());
        assert!(!STYLE.contains("http"), "nothing comes from other hosts");
    }
}
