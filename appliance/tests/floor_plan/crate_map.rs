//! All modules of the crate that have a file, and what each of them uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    graph::Edges,
    paths::{self, Contents},
};

/// A module or an item, from the root of the crate.
type Name = Vec<String>;

/// The file of a folder's own module, among the files of that folder.
const OWN_FILE: &str = "mod";

/// Most re-exports through which one name is followed.
const RE_EXPORTS: usize = 8;

pub(crate) struct CrateMap {
    modules: BTreeMap<Name, Module>,
}

struct Module {
    file: PathBuf,
    contents: Contents,
    /// The names that the module imports, including its re-exports.
    names: BTreeMap<String, Name>,
}

impl CrateMap {
    /// Reads the modules by following the declarations from `lib.rs` on.
    pub(crate) fn read(sources: &BTreeMap<PathBuf, String>) -> Self {
        let mut modules = BTreeMap::new();
        add(Vec::new(), Path::new("lib.rs"), sources, &mut modules);
        Self { modules }
    }

    /// Returns the modules in the order of `lib.rs`.
    pub(crate) fn order(&self) -> &[String] {
        self.modules.get(&Name::new()).map_or(&[], |root| &root.contents.children)
    }

    /// Returns each file with its top module and another top module that the file names.
    pub(crate) fn top_edges(&self) -> BTreeSet<(String, String, String)> {
        let mut edges = BTreeSet::new();
        for (name, module) in &self.modules {
            let Some(own) = name.first() else { continue };
            for taken in module.taken(name).filter_map(|path| path.into_iter().next()) {
                if taken != *own && self.order().contains(&taken) {
                    edges.insert((module.file.display().to_string(), own.clone(), taken));
                }
            }
        }
        edges
    }

    /// Returns, for each folder, which of its files uses which. A folder in it counts as one file.
    pub(crate) fn folder_edges(&self) -> BTreeMap<String, Edges> {
        let mut folders: BTreeMap<String, Edges> = BTreeMap::new();
        for (name, module) in &self.modules {
            for path in module.taken(name) {
                let target = self.defined_in(path);
                let common = name.iter().zip(&target).take_while(|(a, b)| a == b).count();
                let at = |name: &Name| name.get(common).map_or(OWN_FILE, String::as_str).to_owned();
                let (from, to) = (at(name), at(&target));
                if common > 0 && from != to {
                    let folder = name.iter().take(common).cloned().collect::<Vec<_>>().join("/");
                    folders.entry(folder).or_default().entry(from).or_default().insert(to);
                }
            }
        }
        folders
    }

    /// Returns the module in which a path's item is defined, and follows re-exports.
    fn defined_in(&self, mut path: Name) -> Name {
        for _ in 0..RE_EXPORTS {
            let module = self.deepest(&path);
            let re_exported = path
                .get(module.len())
                .and_then(|item| self.modules.get(&module)?.names.get(item))
                .cloned();
            match re_exported {
                Some(mut further) => {
                    further.extend(path.drain(module.len() + 1..));
                    path = further;
                }
                None => return module,
            }
        }
        panic!("{path:?} is re-exported in a circle");
    }

    /// Returns the longest beginning of a path that is a module with a file.
    fn deepest(&self, path: &Name) -> Name {
        let mut module = path.clone();
        while !self.modules.contains_key(&module) {
            module.pop();
        }
        module
    }
}

impl Module {
    /// Returns every path that the module needs, from the root. A re-export of a child that the
    /// module itself does not use does not count.
    fn taken<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = Name> + 'a {
        let imports = self.contents.imports.iter().filter_map(|import| {
            let path = self.absolute(name, &import.path)?;
            let is_facade = import.public && path.starts_with(name);
            (!is_facade || self.uses(import.name.as_deref())).then_some(path)
        });
        let inline = self.contents.paths.iter().filter_map(|path| self.absolute(name, path));
        imports.chain(inline)
    }

    fn uses(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| {
            self.contents.words.iter().any(|word| word == name)
                || self.contents.paths.iter().any(|path| path.iter().any(|part| part == name))
        })
    }

    /// Returns a path from the root, if it belongs to the crate.
    fn absolute(&self, name: &Name, path: &[String]) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([name, rest].concat()),
            "super" => {
                let supers = path.iter().take_while(|word| *word == "super").count();
                let kept = name.len().checked_sub(supers).expect("a module above");
                Some([name.get(..kept)?, path.get(supers..)?].concat())
            }
            child if self.contents.children.iter().any(|listed| listed == child) => {
                Some([name, path].concat())
            }
            _ => None,
        }
    }
}

fn add(
    name: Name,
    file: &Path,
    sources: &BTreeMap<PathBuf, String>,
    modules: &mut BTreeMap<Name, Module>,
) {
    let text = sources.get(file).unwrap_or_else(|| panic!("{} is declared", file.display()));
    let contents = paths::read(text);
    let folder: PathBuf = name.iter().collect();
    let files = contents.children.iter().map(|child| {
        let as_file = folder.join(format!("{child}.rs"));
        let file = Some(as_file).filter(|file| sources.contains_key(file));
        (child.clone(), file.unwrap_or_else(|| folder.join(child).join("mod.rs")))
    });
    for (child, file) in files.collect::<Vec<_>>() {
        add([name.as_slice(), &[child]].concat(), &file, sources, modules);
    }
    let mut module = Module { file: file.to_owned(), contents, names: BTreeMap::new() };
    for import in &module.contents.imports {
        if let (Some(as_name), Some(path)) = (&import.name, module.absolute(&name, &import.path)) {
            module.names.insert(as_name.clone(), path);
        }
    }
    modules.insert(name, module);
}
