//! The documents are true: the tests that they name exist, their links lead somewhere, and the
//! commands of the quick start work as written.

use std::{
    collections::HashSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    net::{AGENT, GATEWAY, OPENAI},
    origin::Origin,
    sandboxed, tools,
};

#[test]
fn every_test_that_a_document_names_exists() {
    let tests = tools::repository().join("tests");
    for page in ["tests/README.md", "docs/security/guarantees.md", "docs/security/limits.md"] {
        let text = read(page);
        let is_name = |text: &&str| {
            let lower = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b':' | b'*');
            text.contains("::") && text.bytes().all(lower)
        };
        let named = text.split('`').skip(1).step_by(2).filter(is_name);
        let missing: Vec<&str> = named.filter(|name| !exists(&tests, name)).collect();
        assert!(missing.is_empty(), "{page} names what does not exist: {missing:?}");
    }
}

/// Returns whether `module::...::name` is a test function, or `module::...::*` a module with some.
fn exists(tests: &Path, name: &str) -> bool {
    let mut parts: Vec<&str> = name.split("::").collect();
    let Some(function) = parts.pop() else { return false };
    let mut file = tests.to_owned();
    file.extend(&parts);
    let sources = [file.with_extension("rs"), file.join("mod.rs")];
    let wanted = match function {
        "*" => "#[test]".to_owned(),
        _ => format!("\nfn {function}()"),
    };
    let holds = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&wanted));
    sources.iter().any(|path| holds(path)) || (function == "*" && file.is_dir())
}

#[test]
fn each_guarantee_names_a_test() {
    let text = read("docs/security/guarantees.md");
    let guarantees: Vec<&str> = text.split("\n## ").skip(1).collect();
    assert!(guarantees.len() >= 6, "there are {}", guarantees.len());
    for guarantee in guarantees {
        let (_, tests) = guarantee.split_once("\nShown by:").unwrap_or_else(|| {
            panic!("nothing shows {}", guarantee.lines().next().unwrap_or_default())
        });
        assert!(tests.contains("::"), "{tests}");
    }
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let root = tools::repository();
    let mut broken = Vec::new();
    let pages = pages(root);
    assert!(pages.len() > 10, "{pages:?}");
    for page in &pages {
        let text = fs::read_to_string(page).expect("readable");
        for link in links(&text) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match target {
                "" => page.clone(),
                target => page.parent().expect("a folder").join(target),
            };
            let there = path.exists();
            let headed = anchor.is_empty()
                || fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(anchor));
            if !(there && headed) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_a_packaged_page_links_is_packaged() {
    let root = tools::repository();
    let assets = read("appliance/Cargo.toml");
    let ships = |path: &Path| {
        let path = path.strip_prefix(root).expect("in the repository").display().to_string();
        path.starts_with("docs/")
            || assets.contains(&format!("[\"../{path}\", \"usr/share/doc/cloakroom/"))
    };
    assert!(assets.contains("[\"../docs/**/*\", \"usr/share/doc/cloakroom/docs/\""));
    let is_page = |path: &Path| {
        path.extension().is_some_and(|extension| extension == "md" || extension == "toml")
    };
    let mut looked_at = 0;
    for page in pages(root)
        .iter()
        .filter(|page| page.starts_with(root.join("docs")) || **page == root.join("README.md"))
    {
        let text = fs::read_to_string(page).expect("readable");
        let targets = links(&text).map(|link| link.split('#').next().unwrap_or_default());
        for target in targets.filter(|target| !target.is_empty()) {
            let path = page.parent().expect("a folder").join(target);
            let path = path.canonicalize().expect("another test looks");
            assert!(!is_page(&path) || ships(&path), "{} leads to {target}", page.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 50, "{looked_at}");
}

/// Returns every Markdown file of the repository.
fn pages(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !hidden && name != "target" && name != "node_modules" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// Returns the targets of inline links, without those that lead out of the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.contains(' '))
}

/// Returns the anchors of headings, in GitHub's form.
fn anchors(text: &str) -> HashSet<String> {
    let mut is_code = false;
    let headings = text.lines().filter(|line| {
        is_code ^= line.trim_start().starts_with("```");
        !is_code && line.starts_with('#')
    });
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | ' ');
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "{lines} lines");
}

#[test]
fn the_quick_start_brings_the_key_to_the_api() {
    sandboxed(|| {
        let lab = Lab::new();
        let (origin, _dns) = (Origin::start(&lab), Dns::start());
        let readme = read("README.md");
        let quick_start = readme.split("\n## ").find(|it| it.starts_with("Quick start\n"));
        let quick_start = quick_start.expect("it is there");
        let folders = ["etc", "root", "etc/secrets"].map(|name| lab.dir.join(name));
        folders.iter().for_each(|folder| fs::create_dir(folder).expect("the lab's is writable"));

        let configs = blocks(quick_start, "toml");
        let [config] = configs.as_slice() else { panic!("one configuration: {configs:?}") };
        lab.write("etc/cloakroom.toml", here(&lab, config));
        let commands = blocks(quick_start, "sh run");
        let [on_gateway, on_agent] = commands.as_slice() else { panic!("{commands:?}") };
        let bin = tools::cloakroom();
        let path = std::env::var("PATH").expect("sh needs one");
        let path = format!("{}:{path}", bin.parent().expect("a folder").display());

        let mut shell = GATEWAY
            .command("sh")
            .args(["-eu", "-c", &here(&lab, on_gateway)])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = shell.stdin.take().expect("a pipe");
        writeln!(stdin, "{OPENAI_SECRET}").expect("it takes the value");
        drop(stdin);
        let ended = shell.wait().expect("it ends");
        assert!(ended.success(), "{on_gateway}");

        gateway::guard();
        let config = lab.dir.join("etc/cloakroom.toml");
        let gateway = Gateway::run(&lab, &config).unwrap_or_else(|it| panic!("{}", it.stderr));
        let mut agent = AGENT.command("sh");
        agent.current_dir(lab.dir.join("root"));
        lab::client::succeed(agent.args(["-eu", "-c", &here(&lab, on_agent)]));
        let requests = origin.log().requests();
        let [request] = requests.as_slice() else { panic!("one request: {requests:?}") };
        assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        assert!(!gateway.audit.text().contains(OPENAI_SECRET));
    });
}

#[test]
fn no_page_marks_commands_as_run_that_no_test_runs() {
    let root = tools::repository();
    let is_marked =
        |page: &PathBuf| fs::read_to_string(page).is_ok_and(|it| it.contains("```sh run"));
    let marked: Vec<PathBuf> = pages(root).into_iter().filter(is_marked).collect();
    assert_eq!(marked, [root.join("README.md")]);
}

/// Returns the fenced blocks with this word behind the fence, without their indent.
fn blocks(text: &str, word: &str) -> Vec<String> {
    let fences = text.split("```").skip(1).step_by(2);
    let of_word = fences.filter_map(|it| it.split_once('\n')).filter(|(first, _)| *first == word);
    let outdented =
        |body: &str| body.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    of_word.map(|(_, body)| outdented(body)).collect()
}

/// Adapts the text to the lab: its folder replaces the machine's, and its API the real one.
fn here(lab: &Lab, text: &str) -> String {
    let dir = lab.dir.display();
    let folders = format!(
        "[gateway]\naudit = \"{dir}/audit.jsonl\"\nca_dir = \"{dir}/issuing\"\n\
         state_dir = \"{dir}/state\"\ncontrol = \"{dir}/control/control.sock\""
    );
    let ca = format!("hosts = [\"{}\"]\nupstream_ca = {:?}", OPENAI.name, lab.public_ca());
    text.replace("[gateway]", &folders)
        .replace("hosts = [\"api.openai.com\"]", &ca)
        .replace("api.openai.com", OPENAI.name)
        .replace("/etc/cloakroom/", &format!("{dir}/etc/"))
        .replace("/root/", &format!("{dir}/root/"))
}

fn read(page: &str) -> String {
    let path = tools::repository().join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
