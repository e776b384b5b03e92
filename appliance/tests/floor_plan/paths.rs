//! The paths that one source file names, and the modules that it declares.

use std::iter::Peekable;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree, token_stream::IntoIter};

/// The content of one file, without its tests.
#[derive(Default)]
pub(crate) struct Contents {
    /// Modules that have a file of their own.
    pub(crate) children: Vec<String>,
    /// The imports: in which module, under which name, from where.
    pub(crate) imports: Vec<Import>,
    /// Paths in code.
    pub(crate) paths: Vec<Vec<String>>,
    /// Every other word in code.
    pub(crate) words: Vec<String>,
}

/// One leaf of a `use` tree.
pub(crate) struct Import {
    pub(crate) public: bool,
    /// `None` for a glob.
    pub(crate) name: Option<String>,
    pub(crate) path: Vec<String>,
}

/// Reads a file. Paths inside inline modules are changed to the form that the file itself would
/// use.
pub(crate) fn read(text: &str) -> Contents {
    let tokens: TokenStream = text.parse().expect("Rust");
    let mut contents = Contents::default();
    walk(tokens, 0, &mut contents);
    contents
}

/// Reads tokens. `depth` is the number of inline modules around them.
fn walk(tokens: TokenStream, depth: usize, contents: &mut Contents) {
    let mut tokens = tokens.into_iter().peekable();
    let mut public = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(sign) if sign.as_char() == '#' => {
                let of_tests = attribute(&mut tokens).is_some_and(|text| text == "cfg (test)");
                if of_tests {
                    skip_item(&mut tokens);
                }
            }
            TokenTree::Group(group) => walk(group.stream(), depth, contents),
            TokenTree::Ident(word) if word == "pub" => {
                public = true;
                let _ = next_group(&mut tokens, Delimiter::Parenthesis);
            }
            TokenTree::Ident(word) if word == "use" => {
                take_use(&mut tokens, public, depth, contents);
                public = false;
            }
            TokenTree::Ident(word) if word == "mod" => {
                take_mod(&mut tokens, depth, contents);
                public = false;
            }
            TokenTree::Ident(word) => {
                public = false;
                take_path(word.to_string(), &mut tokens, depth, contents);
            }
            _ => {}
        }
    }
}

fn attribute(tokens: &mut Peekable<IntoIter>) -> Option<String> {
    next_group(tokens, Delimiter::Bracket).map(|group| group.stream().to_string())
}

/// Skips an item: everything up to its body, or up to its semicolon.
fn skip_item(tokens: &mut Peekable<IntoIter>) {
    let mut is_use = false;
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == "use" => is_use = true,
            TokenTree::Punct(sign) if sign.as_char() == ';' => return,
            TokenTree::Group(group) if !is_use && group.delimiter() == Delimiter::Brace => return,
            _ => {}
        }
    }
}

fn take_use(tokens: &mut Peekable<IntoIter>, public: bool, depth: usize, contents: &mut Contents) {
    let is_end =
        |token: &TokenTree| matches!(token, TokenTree::Punct(sign) if sign.as_char() == ';');
    let tree: TokenStream = tokens.by_ref().take_while(|token| !is_end(token)).collect();
    let mut found = Vec::new();
    use_tree(tree, &[], &mut found);
    for (name, path) in found {
        let Some(path) = outside(path, depth) else { continue };
        // An inline module's imports are no names of the file.
        let name = name.filter(|_| depth == 0);
        contents.imports.push(Import { public, name, path });
    }
}

/// Returns the leaves of one `use` tree: their names and whole paths.
fn use_tree(tree: TokenStream, before: &[String], found: &mut Vec<(Option<String>, Vec<String>)>) {
    let mut path = before.to_vec();
    let mut alias = None;
    let mut is_leaf = false;
    let mut is_glob = false;
    let mut tokens = tree.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word == "as" => {
                alias = tokens.next().map(|to| to.to_string())
            }
            TokenTree::Ident(word) if word == "self" && is_leaf => {}
            TokenTree::Ident(word) => {
                if word != "self" || path.is_empty() {
                    path.push(word.to_string());
                }
                is_leaf = true;
            }
            TokenTree::Group(group) => {
                use_tree(group.stream(), &path, found);
                is_leaf = false;
            }
            TokenTree::Punct(sign) if sign.as_char() == '*' => (is_leaf, is_glob) = (true, true),
            TokenTree::Punct(sign) if sign.as_char() == ',' => {
                leaf(&mut path, &mut alias, is_leaf, is_glob, found);
                path = before.to_vec();
                (is_leaf, is_glob) = (false, false);
            }
            _ => {}
        }
    }
    leaf(&mut path, &mut alias, is_leaf, is_glob, found);
}

fn leaf(
    path: &mut Vec<String>,
    alias: &mut Option<String>,
    is_leaf: bool,
    is_glob: bool,
    found: &mut Vec<(Option<String>, Vec<String>)>,
) {
    if is_leaf {
        let name = alias.take().or_else(|| path.last().cloned()).filter(|_| !is_glob);
        found.push((name, std::mem::take(path)));
    }
}

fn take_mod(tokens: &mut Peekable<IntoIter>, depth: usize, contents: &mut Contents) {
    let Some(TokenTree::Ident(name)) = tokens.next() else { return };
    match next_group(tokens, Delimiter::Brace) {
        Some(body) => walk(body.stream(), depth + 1, contents),
        None if depth == 0 => contents.children.push(name.to_string()),
        None => {}
    }
}

/// Takes a word of code, with every `:: word` behind it.
fn take_path(
    first: String,
    tokens: &mut Peekable<IntoIter>,
    depth: usize,
    contents: &mut Contents,
) {
    let mut path = vec![first];
    while next_is(tokens, ':') {
        tokens.next();
        if !next_is(tokens, ':') {
            break;
        }
        tokens.next();
        match tokens.peek() {
            Some(TokenTree::Ident(word)) => {
                path.push(word.to_string());
                tokens.next();
            }
            _ => break,
        }
    }
    match (path.len(), path.pop()) {
        (1, Some(word)) => contents.words.push(word),
        (_, Some(last)) => {
            path.push(last);
            contents.paths.extend(outside(path, depth));
        }
        (_, None) => {}
    }
}

fn next_is(tokens: &mut Peekable<IntoIter>, sign: char) -> bool {
    matches!(tokens.peek(), Some(TokenTree::Punct(next)) if next.as_char() == sign)
}

fn next_group(tokens: &mut Peekable<IntoIter>, delimiter: Delimiter) -> Option<Group> {
    match tokens.peek() {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => {
            let group = group.clone();
            tokens.next();
            Some(group)
        }
        _ => None,
    }
}

/// Returns a path inside `depth` inline modules in the form that their file would use. `None` where
/// it stays inside.
fn outside(mut path: Vec<String>, depth: usize) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|word| *word == "super").count();
    if depth == 0 || path.first().is_some_and(|word| word == "crate") {
        return Some(path);
    }
    if supers < depth {
        return None;
    }
    path.drain(..depth);
    if supers == depth {
        path.insert(0, "self".to_owned());
    }
    Some(path)
}
