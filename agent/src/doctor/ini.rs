//! The format of NetworkManager's and systemd's files: sections, keys, values. Values may hold globs.

use std::collections::BTreeMap;

use super::facts::Files;

/// The assignments of a file in their order: section, key, value.
pub(super) fn assignments(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once('=') {
            found.push((section.clone(), key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

/// The files of some folders, by name: one in an earlier folder hides one of the same name in a later.
pub(super) fn merged(files: &Files, folders: &[&str], end: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in folders.iter().rev() {
        for name in files.names(folder, end) {
            let path = format!("{folder}/{name}");
            if files.exists(&path) {
                found.insert(name, path);
            }
        }
    }
    found
}

/// Whether a glob of `*` and `?` matches all of a text.
pub(super) fn matches(glob: &str, text: &str) -> bool {
    match (glob.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = glob.get(1..).unwrap_or_default();
            let tails = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            tails.filter_map(|at| text.get(at..)).any(|tail| matches(rest, tail))
        }
        (Some(g), Some(t)) if g == '?' || g == t => matches(
            glob.get(g.len_utf8()..).unwrap_or_default(),
            text.get(t.len_utf8()..).unwrap_or_default(),
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_a_shells_do() {
        for (glob, text) in
            [("*", "wgo0"), ("wg*", "wgo0"), ("wgo?", "wgo0"), ("*o*", "wgo0"), ("", ""), ("é?", "éa")]
        {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [("eth*", "wgo0"), ("wgo", "wgo0"), ("?", ""), ("wgo0?", "wgo0"), ("", "w")] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
    }

    #[test]
    fn sections_comments_and_spaces_are_understood() {
        let text = "# no\n[a]\nk = v\n;x=y\n[b]\nk=w\nnonsense\n";
        let found = assignments(text);
        let text: Vec<_> = found.iter().map(|(s, k, v)| format!("{s}.{k}={v}")).collect();
        assert_eq!(text, ["a.k=v", "b.k=w"]);
    }
}
