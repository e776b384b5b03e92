//! The services and regions for which signatures of AWS (Signature Version 4) may be made at an
//! API.

use std::{fmt, sync::Arc};

use super::Host;

/// The services and regions that requests to an API may be signed for. Neither is ever empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsScope {
    /// The names that services sign with, as in `s3` or `bedrock`.
    pub services: Vec<AwsName>,
    /// The regions.
    pub regions: Vec<AwsName>,
}

/// The name of a service or a region: 1 to 64 bytes of `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AwsName(Arc<str>);

/// The reason why a text is not an [`AwsName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a service or region has 1 to 64 of a-z, 0-9 and '-', as in \"eu-central-1\"")]
pub struct AwsNameError;

impl AwsName {
    /// Reads a name as it stands in policy and in a signature.
    ///
    /// # Errors
    ///
    /// Where the text has other bytes, or too many.
    pub fn parse(text: &str) -> Result<Self, AwsNameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = text.bytes().all(plain) && (1..=MAX_NAME).contains(&text.len());
        if good { Ok(Self(text.into())) } else { Err(AwsNameError) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the service signs by Amazon S3's rules: the path as it is, and the hash of the body
    /// in a field.
    pub fn is_s3(&self) -> bool {
        let rest = self.0.strip_prefix("s3");
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-') || rest == "express")
    }

    /// Whether requests to a service make credentials, or return stored ones, that no mask covers.
    pub fn hands_out_credentials(&self) -> bool {
        HANDS_OUT.contains(&self.as_str())
    }
}

/// Whether a host belongs to S3 Control, whose `GetDataAccess` hands out sessions.
pub fn is_s3_control(host: &Host) -> bool {
    let is = |label: &str| {
        let rest = label.strip_prefix(S3_CONTROL);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    host.as_str().split('.').any(is)
}

impl AwsScope {
    /// Returns the service and the region of a signature, where a request to `host` may have it.
    ///
    /// A host with a listed service or region in its name is for that one alone: no request to it
    /// is signed for another.
    pub fn find(&self, host: &Host, service: &str, region: &str) -> Option<(&AwsName, &AwsName)> {
        let of_host = named(host, &self.services, |label, name| {
            label.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        let service = only(of_host, &self.services, service)?;
        let of_host = named(host, &self.regions, |label, name| label == name);
        Some((service, only(of_host, &self.regions, region)?))
    }
}

/// Returns the listed name in a label of the host. The last such label counts, because customers
/// choose the labels before it.
fn named<'n>(
    host: &Host,
    names: &'n [AwsName],
    is: impl Fn(&str, &str) -> bool,
) -> Option<&'n AwsName> {
    let mut labels = host.as_str().rsplit('.');
    labels.find_map(|label| {
        let named = names.iter().filter(|name| is(label, name.as_str()));
        named.max_by_key(|name| name.as_str().len())
    })
}

fn only<'n>(of_host: Option<&AwsName>, names: &'n [AwsName], asked: &str) -> Option<&'n AwsName> {
    let found = names.iter().find(|name| name.as_str() == asked)?;
    of_host.is_none_or(|own| own == found).then_some(found)
}

impl fmt::Display for AwsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const MAX_NAME: usize = 64;

/// Services whose answers hold credentials: sessions and keys, passwords of registries, secrets.
const HANDS_OUT: [&str; 28] = [
    "sts",
    "iam",
    "sso",
    "sso-oauth",
    "signin",
    "s3express",
    "cognito-identity",
    "rolesanywhere",
    "ecr",
    "ecr-public",
    "codeartifact",
    "secretsmanager",
    "ssm",
    "lakeformation",
    "redshift",
    "redshift-serverless",
    "datazone",
    "lightsail",
    "connect",
    "gamelift",
    "elasticmapreduce",
    "emr-containers",
    "cognito-idp",
    "bedrock-agentcore",
    "iot",
    "appsync",
    "apigateway",
    "acm",
];

/// The service by which S3 manages itself. It signs as `s3`, and only its hosts tell it apart.
const S3_CONTROL: &str = "s3-control";

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(services: &[&str], regions: &[&str]) -> AwsScope {
        let names = |names: &[&str]| names.iter().map(|it| AwsName::parse(it).unwrap()).collect();
        AwsScope { services: names(services), regions: names(regions) }
    }

    #[test]
    fn a_host_of_a_service_or_region_is_its_alone() {
        let scope = scope(&["s3", "bedrock", "dynamodb"], &["eu-central-1", "us-east-1"]);
        let finds = |host: &str, service, region| {
            scope.find(&Host::parse(host).unwrap(), service, region).is_some()
        };
        for (host, service, region) in [
            ("coats.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("s3.us-east-1.amazonaws.com", "s3", "us-east-1"),
            // A bucket may have any name.
            ("bedrock.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("us-east-1.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bedrock-runtime.eu-central-1.amazonaws.com", "bedrock", "eu-central-1"),
            ("objects.example", "s3", "eu-central-1"),
            ("s3.amazonaws.com", "s3", "us-east-1"),
        ] {
            assert!(finds(host, service, region), "{host} {service} {region}");
        }
        for (host, service, region) in [
            ("coats.s3.eu-central-1.amazonaws.com", "bedrock", "eu-central-1"),
            ("coats.s3.eu-central-1.amazonaws.com", "s3", "us-east-1"),
            ("bedrock-runtime.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bedrock.s3.eu-central-1.amazonaws.com", "bedrock", "eu-central-1"),
            ("objects.example", "sts", "eu-central-1"),
            ("objects.example", "s3", "eu-west-1"),
            ("objects.example", "S3", "eu-central-1"),
            ("objects.example", "", ""),
        ] {
            assert!(!finds(host, service, region), "{host} {service} {region}");
        }
    }

    #[test]
    fn s3_control_is_known_by_its_hosts() {
        let is = |host: &str| is_s3_control(&Host::parse(host).unwrap());
        for host in ["s3-control", "1.s3-control-fips", "1.s3-control.dualstack"] {
            assert!(is(&format!("{host}.eu-central-1.amazonaws.com")), "{host}");
        }
        assert!(!is("s3.eu-central-1.amazonaws.com") && !is("s3-controls.example"));
    }

    #[test]
    fn a_name_stands_in_a_signature_as_it_is() {
        for good in ["s3", "eu-central-1", "auto", &"a".repeat(64)] {
            assert_eq!(AwsName::parse(good).map(|it| it.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "S3", "s3/x", "a b", "*", "é", &"a".repeat(65)] {
            assert_eq!(AwsName::parse(bad), Err(AwsNameError), "{bad}");
        }
        let s3 = |name: &str| AwsName::parse(name).unwrap().is_s3();
        assert!(s3("s3") && s3("s3-outposts") && s3("s3express"));
        assert!(!s3("s3x") && !s3("bedrock"));
    }
}
