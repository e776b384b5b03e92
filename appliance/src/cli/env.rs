//! `cloakroom env`: prints the environment of a group's agents, in which clients find their
//! placeholders and the CA to trust. It is made from the policy alone, and no secret is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};

use crate::{
    catalogue::{self, Client, Provider},
    config::{self, DEFAULT_CONFIG},
    policy::{Api, Binding, GroupName, Policy},
};

/// The group, and the format of its environment.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom env research\n  \
    cloakroom env --format docker research >agent.env && docker run --env-file agent.env ...\n  \
    cloakroom env --format kubernetes research | kubectl apply -f -\n  \
    cloakroom env --shape research\n\n\
    With --shape a placeholder looks like its provider's keys, for programs that look at a key before\n\
    they send it: a made-up text, which stands for the placeholder wherever its name does, for this\n\
    group alone. It is made of the names and the shape, so it stays the same, and no secret is in it;\n\
    but scanners that look for keys take it for one.\n\n\
    The two files are what `cloakroom ca show --bundle` and `cloakroom ca show` print; where they lie\n\
    elsewhere at the agents, --bundle and --ca say so. Where the CA was installed into the system's\n\
    store, as the onboarding script does as root, name the system's bundle:\n\
    --bundle /etc/ssl/certs/ca-certificates.crt on Debian.")]
pub struct EnvArgs {
    /// The group of the agents
    #[arg(value_name = "GROUP", value_parser = GroupName::parse)]
    group: GroupName,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    format: Format,
    /// Print each placeholder in the shape of its provider's keys, where that is known
    #[arg(long)]
    shape: bool,
    /// Where the agents have the gateway's CA together with the public ones
    #[arg(long, value_name = "PATH", default_value = "/usr/local/share/cloakroom/bundle.pem")]
    bundle: PathBuf,
    /// Where the agents have the gateway's CA alone
    #[arg(long, value_name = "PATH", default_value = "/usr/local/share/cloakroom/ca.pem")]
    ca: PathBuf,
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    pub(super) config: PathBuf,
}

/// The format of the variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// `export` lines for a POSIX shell
    Shell,
    /// A .env file
    Dotenv,
    /// One JSON object
    Json,
    /// `Environment=` lines of a unit
    Systemd,
    /// A file for `docker run --env-file`
    Docker,
    /// A ConfigMap, for `envFrom`
    Kubernetes,
}

/// Returns the environment of that group.
///
/// # Errors
///
/// There is no such group, or one variable would need two values.
pub fn environment(args: &EnvArgs, policy: &Policy) -> Result<String, String> {
    if let Some(error) = no_group(args.group.as_str(), policy) {
        return Err(error);
    }
    let group = policy.groups.iter().find(|group| group.name == args.group);
    let mut environment = Environment::of(&args.group, args.shape);
    for api in &policy.apis {
        for binding in api.bindings.iter().filter(|it| it.groups.contains(&args.group)) {
            environment.add(api, binding)?;
        }
    }
    for client in
        group.iter().flat_map(|group| &group.clients).filter_map(|name| catalogue::client(name))
    {
        environment.client(client, policy)?;
    }
    environment.trust(&args.bundle, &args.ca)?;
    Ok(environment.text(args.format))
}

/// Returns the error of naming this group, if it is one.
pub(super) fn no_group(name: &str, policy: &Policy) -> Option<String> {
    let groups: Vec<&str> = policy.groups.iter().map(|it| it.name.as_str()).collect();
    match config::nearest(name, groups.iter().copied()) {
        Some(meant) if meant == name => None,
        Some(meant) => Some(format!("no group is named {name:?}; did you mean {meant:?}?")),
        None => Some(format!("no group is named {name:?}; there are {}", groups.join(", "))),
    }
}

struct Environment<'a> {
    group: &'a GroupName,
    /// Whether placeholders are to look like keys.
    shape: bool,
    variables: BTreeMap<String, String>,
    /// Remarks that belong to no line of a variable.
    remarks: BTreeSet<String>,
}

impl<'a> Environment<'a> {
    fn of(group: &'a GroupName, shape: bool) -> Self {
        Self { group, shape, variables: BTreeMap::new(), remarks: BTreeSet::new() }
    }

    fn add(&mut self, api: &Api, binding: &Binding) -> Result<(), String> {
        let (placeholder, api) = (&binding.placeholder, &api.name);
        let text = self.held(binding);
        if binding.variables.is_empty() {
            self.remarks.insert(format!("{text}, of {api}: no variable is known"));
        }
        if self.shape && binding.shaped.is_none() {
            self.remarks.insert(format!("{placeholder}, of {api}: no shape is known"));
        }
        let mut variables = binding.variables.iter();
        variables.try_for_each(|variable| self.set(variable, text, api))
    }

    /// Returns the text that agents hold for the placeholder.
    fn held<'b>(&self, binding: &'b Binding) -> &'b str {
        let shaped = binding.shaped_text(self.group).filter(|_| self.shape);
        shaped.unwrap_or(binding.placeholder.as_str())
    }

    /// Adds the variables that a client reads beside those of its APIs.
    fn client(&mut self, client: &Client, policy: &Policy) -> Result<(), String> {
        for (variable, value) in client.variables() {
            self.set(variable, value, client.name)?;
        }
        for (variable, provider) in client.keys() {
            let hosts = catalogue::provider(provider).map(Provider::hosts).unwrap_or_default();
            let is_its =
                |api: &&Arc<Api>| api.hosts.iter().any(|own| hosts.contains(&own.as_str()));
            let bindings = policy.apis.iter().filter(is_its).flat_map(|api| &api.bindings);
            let own = bindings.filter(|binding| binding.groups.contains(self.group)).take(1);
            for binding in own {
                self.set(variable, self.held(binding), client.name)?;
            }
        }
        Ok(())
    }

    fn trust(&mut self, bundle: &Path, ca: &Path) -> Result<(), String> {
        for (variable, file) in BUNDLES.map(|it| (it, bundle)).into_iter().chain([(EXTRA, ca)]) {
            let file = file.to_str().ok_or("a path is not UTF-8")?;
            self.set(variable, file, "what agents are to trust")?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str, by: impl std::fmt::Display) -> Result<(), String> {
        match self.variables.get(key) {
            Some(other) if other != value => Err(format!(
                "{key} would hold {other} and, by {by}, {value}; give them one placeholder{}, or write \
                 variables = [...] in an [[api.binding]]",
                if self.shape { " and one shape" } else { "" }
            )),
            _ => {
                self.variables.insert(key.into(), value.into());
                Ok(())
            }
        }
    }

    fn text(&self, format: Format) -> String {
        let mut text = String::new();
        if format == Format::Json {
            return format!("{:#}\n", serde_json::json!(self.variables));
        }
        if format == Format::Kubernetes {
            let name = self.group.to_string().replace('_', "-");
            let _ = write!(
                text,
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: cloakroom-{name}\ndata:\n"
            );
        }
        for line in &self.remarks {
            let _ = writeln!(text, "# {line}");
        }
        for (key, value) in &self.variables {
            let _ = match format {
                Format::Shell => writeln!(text, "export {key}='{}'", value.replace('\'', r"'\''")),
                Format::Dotenv => {
                    writeln!(text, "{key}=\"{}\"", escaped(value, &['"', '\\', '$', '`']))
                }
                Format::Systemd => {
                    let value = escaped(value, &['"', '\\']).replace('%', "%%");
                    writeln!(text, "Environment=\"{key}={value}\"")
                }
                Format::Docker => writeln!(text, "{key}={value}"),
                Format::Kubernetes | Format::Json => {
                    writeln!(text, "  {key}: {}", serde_json::json!(value))
                }
            };
        }
        text
    }
}

/// Puts a backslash before each of the special letters.
fn escaped(value: &str, special: &[char]) -> String {
    value.chars().fold(String::new(), |mut text, letter| {
        if special.contains(&letter) {
            text.push('\\');
        }
        text.push(letter);
        text
    })
}

/// Variables that OpenSSL, requests, curl and git read; the bundle replaces all other CAs.
const BUNDLES: [&str; 4] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// The variable that Node reads; the CA is added to Node's own.
const EXTRA: &str = "NODE_EXTRA_CA_CERTS";

#[cfg(test)]
mod tests {
    use policy_builder::{Config, Table, api, binding, group};

    use super::*;

    /// A provider that is known, and an API whose placeholders name no variables.
    fn file() -> Config {
        let gemini = Table::one_of("binding").set("groups", [GROUP]).set("secret", "file:gemini");
        let bearer = ["header authorization bearer"];
        let named = binding(GROUP, "it's-$%`odd", &bearer, "file:odd").set("variables", ["ODD"]);
        let unnamed = binding(GROUP, "no-name-of-a-variable", &["query key"], "file:odd");
        Config::of_rules()
            .with(group(GROUP, "agents0", &["192.0.2.0/28"]))
            .with(Table::one_of("api").set("provider", "gemini").with(gemini))
            .with(api("odd", &["odd.example"]).with(named).with(unnamed))
    }

    const GROUP: &str = "research_1";

    fn shown(file: &Config, format: Format) -> Result<String, String> {
        printed(file, format, false)
    }

    fn printed(file: &Config, format: Format, shape: bool) -> Result<String, String> {
        let config = config::parse(&file.to_string(), None, "test", &|_| Ok(String::new()));
        let policy = config.map_err(|errors| errors.to_string())?.policy;
        let group = policy.groups[0].name.clone();
        let (bundle, ca, config) = ("/b.pem".into(), "/c.pem".into(), PathBuf::new());
        environment(&EnvArgs { group, format, shape, bundle, ca, config }, &policy)
    }

    #[test]
    fn every_format_holds_each_variable_in_its_own_quotes() {
        for (format, line) in [
            (Format::Shell, r"export ODD='it'\''s-$%`odd'"),
            (Format::Dotenv, r#"ODD="it's-\$%\`odd""#),
            (Format::Json, r#""ODD": "it's-$%`odd","#),
            (Format::Systemd, r#"Environment="ODD=it's-$%%`odd""#),
            (Format::Docker, "ODD=it's-$%`odd"),
            (Format::Kubernetes, r#"ODD: "it's-$%`odd""#),
        ] {
            let text = shown(&file(), format).unwrap();
            assert!(text.lines().any(|it| it.trim() == line), "{format:?}: {text}");
            for key in ["GEMINI_API_KEY", "GOOGLE_API_KEY", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"]
            {
                assert!(text.contains(key), "{format:?}: {text}");
            }
            let told = text.contains("# no-name-of-a-variable, of odd");
            assert_eq!(told, format != Format::Json, "{format:?}: {text}");
        }
        assert!(
            shown(&file(), Format::Kubernetes).unwrap().contains("name: cloakroom-research-1\n")
        );
    }

    #[test]
    fn a_missing_group_is_named_with_the_one_meant() {
        let policy = config::parse(&file().to_string(), None, "test", &|_| Ok(String::new()))
            .unwrap()
            .policy;
        let error = no_group("reserch_1", &policy).unwrap();
        assert_eq!(error, "no group is named \"reserch_1\"; did you mean \"research_1\"?");
        let error = no_group("x", &policy).unwrap();
        assert_eq!(error, "no group is named \"x\"; there are research_1");
        assert_eq!(no_group("research_1", &policy), None);
    }

    #[test]
    fn a_client_adds_its_switches_and_its_own_variables() {
        let with = file().group(GROUP, |it| it.set("client", ["codex", "litellm"]));
        let shown_before = shown(&with, Format::Docker).unwrap();
        assert!(shown_before.contains("LITELLM_LOCAL_MODEL_COST_MAP=True\n"), "{shown_before}");
        assert!(!shown_before.contains("CODEX_API_KEY"), "there is no API for it");
        let key = Table::one_of("binding").set("groups", [GROUP]).set("secret", "file:openai");
        let key = key.set("placeholder", "OUR_OPENAI_KEY");
        let openai = Table::one_of("api").set("provider", "openai").with(key);
        let shown = shown(&with.with(openai), Format::Docker).unwrap();
        assert!(shown.contains("CODEX_API_KEY=OUR_OPENAI_KEY\n"), "{shown}");
    }

    #[test]
    fn a_shape_is_printed_where_it_is_known() {
        let text = printed(&file(), Format::Docker, true).unwrap();
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
            line.unwrap_or_else(|| panic!("{key}: {text}")).to_owned()
        };
        let gemini = value(&text, "GEMINI_API_KEY");
        assert!(gemini.starts_with("AIza") && gemini.len() == 39, "{gemini}");
        assert_eq!(value(&text, "GOOGLE_API_KEY"), gemini);
        assert_eq!(value(&text, "ODD"), "it's-$%`odd");
        assert!(text.contains("# it's-$%`odd, of odd: no shape is known"), "{text}");
        assert_eq!(printed(&file(), Format::Docker, true).unwrap(), text, "it stays the same");
        let with = file().group(GROUP, |it| it.set("client", ["codex"]));
        let key = Table::one_of("binding").set("groups", [GROUP]).set("secret", "file:openai");
        let with = with.with(Table::one_of("api").set("provider", "openai").with(key));
        let text = printed(&with, Format::Docker, true).unwrap();
        assert_eq!(value(&text, "CODEX_API_KEY"), value(&text, "OPENAI_API_KEY"));
        assert!(value(&text, "OPENAI_API_KEY").starts_with("sk-"), "{text}");
    }

    #[test]
    fn a_variable_with_two_values_is_an_error_naming_both() {
        let twice = file().binding("it's-$%`odd", |it| it.set("variables", ["GOOGLE_API_KEY"]));
        let error = shown(&twice, Format::Shell).unwrap_err();
        for part in ["GOOGLE_API_KEY", "GEMINI_API_KEY", "by odd", "variables = [...]"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
