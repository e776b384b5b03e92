//! A test for every row of the table of answers, by name.

use http::{HeaderMap, HeaderValue, Method};

use super::{testing::*, *};
use crate::{
    policy::{Anonymous, AnonymousRequest, Plain},
    reason::{Reason, SecretCause},
};

#[test]
fn a_placeholder_in_its_listed_place_becomes_its_value() {
    let rules = rules();
    let bearer = format!("Bearer {}", value_of(BEARER));
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let text = format!("{scheme} {BEARER}");
        assert_eq!(sent(&rules, &[("authorization", &text)], "authorization"), bearer);
    }
    let token = format!("token {TOKEN}");
    let expected = format!("token {}", value_of(TOKEN));
    assert_eq!(sent(&rules, &[("authorization", &token)], "authorization"), expected);
    assert_eq!(sent(&rules, &[("x-special-key", RAW)], "x-special-key"), value_of(RAW));
}

#[test]
fn whatever_word_is_listed_stands_before_the_value() {
    for word in ["Key", "Bot", "GenieKey", "SSWS", "Splunk", "Klaviyo-API-Key"] {
        let rules = rules_with(|api| {
            let mut own = api.bindings[0].as_ref().clone();
            own.places = vec![header("authorization", &format!("scheme {word}"))];
            api.bindings[0] = own.into();
        });
        let expected = format!("{word} {}", value_of(BEARER));
        for scheme in [word, &word.to_lowercase(), &word.to_uppercase()] {
            let text = format!("{scheme} {BEARER}");
            assert_eq!(sent(&rules, &[("authorization", &text)], "authorization"), expected);
        }
        for text in [format!("Bearer {BEARER}"), BEARER.to_owned(), format!("{word}: {BEARER}")] {
            let reason = refused(&rules, head(&[("authorization", &text)]));
            assert_eq!(reason, Reason::PlaceholderWrongPlace, "{text}");
        }
    }
}

#[test]
fn basic_is_decoded_and_encoded_anew() {
    let rules = rules();
    let send = |pair: &str| sent(&rules, &[("authorization", &basic(pair))], "authorization");
    let password = value_of(PASSWORD);
    assert_eq!(send(&format!("git:{PASSWORD}")), basic(&format!("git:{password}")));
    assert_eq!(send(&format!(":{PASSWORD}")), basic(&format!(":{password}")));
    let user = value_of(USER);
    assert_eq!(send(&format!("{USER}:x")), basic(&format!("{user}:x")));
    assert_eq!(send(&format!("{USER}:")), basic(&format!("{user}:")));
    assert_eq!(send(&format!("{USER}:{PASSWORD}")), basic(&format!("{user}:{password}")));
    assert_eq!(
        send(&format!("{EITHER}:{PASSWORD}")),
        basic(&format!("{}:{password}", value_of(EITHER)))
    );
}

#[test]
fn a_plan_names_what_it_swaps() {
    let pair = basic(&format!("{USER}:{PASSWORD}"));
    let (_, substitution) = swapped(&rules(), head(&[("authorization", &pair)])).unwrap();
    let names: Vec<_> = substitution.placeholders().map(|name| name.as_str()).collect();
    assert_eq!(names, [USER, PASSWORD]);
}

#[test]
fn an_unlisted_half_beside_a_placeholder_is_refused() {
    let rules = rules();
    let refuse = |pair: String| refused(&rules, head(&[("authorization", &basic(&pair))]));
    for (pair, reason) in [
        (format!("root:{PASSWORD}"), Reason::ForeignCredential),
        (format!("Git:{PASSWORD}"), Reason::ForeignCredential),
        (format!("{USER}:attackers-own-key"), Reason::ForeignCredential),
        (format!("git:{PASSWORD}:"), Reason::ForeignCredential),
        (format!("git:{OTHER_GROUP}"), Reason::ForeignCredential),
        (format!("{PASSWORD}:"), Reason::PlaceholderWrongPlace),
        (format!("git:{USER}"), Reason::PlaceholderWrongPlace),
        (format!("{USER}:{BEARER}"), Reason::PlaceholderWrongPlace),
        (format!("{BEARER}:{PASSWORD}"), Reason::PlaceholderWrongPlace),
        (format!("{OTHER_HOST}:{BEARER}"), Reason::PlaceholderWrongPlace),
        (format!("git:{OTHER_HOST}"), Reason::PlaceholderWrongHost),
        (format!("{USER}:{OTHER_HOST}"), Reason::PlaceholderWrongHost),
        (format!("{EITHER}:{EITHER}"), Reason::DuplicateCredential),
        (":".to_owned(), Reason::ForeignCredential),
    ] {
        assert_eq!(refuse(pair.clone()), reason, "{pair}");
    }
}

#[test]
fn basic_that_does_not_decode_is_malformed() {
    let padded = basic(&format!("git:{PASSWORD}x"));
    for text in [
        "Basic *".to_owned(),
        "Basic ".to_owned(),
        format!("Basic  {}", &padded[6..]),
        format!("{padded}="),
        format!("{padded} "),
        basic("no-colon").to_owned(),
        "Basic Z2l0OnB".to_owned(),
    ] {
        let reason = refused(&rules(), head(&[("authorization", &text)]));
        assert_eq!(reason, Reason::CredentialMalformed, "{text}");
    }
}

#[test]
fn no_credential_is_refused_unless_the_api_is_anonymous() {
    let request = || head(&[("accept", "*/*"), ("proxy-authorization", "Basic Zm9vOmJhcg==")]);
    assert_eq!(refused(&rules(), request()), Reason::PlaceholderMissing);
    let (parts, substitution) =
        swapped(&rules_with(|api| api.anonymous = Anonymous::Always), request()).unwrap();
    assert!(substitution.is_anonymous());
    assert!(!parts.headers.contains_key("proxy-authorization"));
}

#[test]
fn an_anonymous_api_still_refuses_a_foreign_credential() {
    let rules = rules_with(|api| api.anonymous = Anonymous::Always);
    for value in ["Bearer sk-attackers-own", "", "Bearer"] {
        let reason = refused(&rules, head(&[("authorization", value)]));
        assert_eq!(reason, Reason::ForeignCredential, "{value:?}");
    }
}

#[test]
fn listed_anonymous_requests_alone_pass_without_a_credential() {
    let rules = rules_with(|api| {
        api.methods = vec![Method::POST];
        api.paths = vec![crate::policy::PathRule::parse("/v1/*").unwrap()];
        let hello = AnonymousRequest::parse("GET /api/hello").unwrap();
        api.anonymous = Anonymous::Listed(vec![hello]);
    });
    let at = |method, path, fields: &[(&str, &str)]| {
        examine(&rules, &head_to(method, path, fields)).map_err(|denial| denial.reason)
    };
    assert!(at(Method::GET, "/api/hello?a=b", &[]).unwrap().is_anonymous());
    for (method, path) in [
        (Method::POST, "/api/hello"),
        (Method::GET, "/api/hello/../x"),
        (Method::GET, "/v1/chat"),
        (Method::POST, "/v1/chat"),
    ] {
        assert_eq!(at(method, path, &[]).unwrap_err(), Reason::PlaceholderMissing, "{path}");
    }
    let good = [("authorization", &*format!("Bearer {BEARER}"))];
    assert_eq!(at(Method::GET, "/api/hello", &good).unwrap_err(), Reason::MethodDenied);
    assert_eq!(at(Method::POST, "/api/hello", &good).unwrap_err(), Reason::PathDenied);
    assert!(at(Method::POST, "/v1/chat", &good).is_ok());
    let own = [("apikey", "attackers-own")];
    assert_eq!(at(Method::GET, "/api/hello", &own).unwrap_err(), Reason::ForeignCredential);
}

#[test]
fn rules_are_checked_after_a_good_credential() {
    let good = format!("Bearer {BEARER}");
    let at = |method, path, value: &str| {
        examine(&narrow(), &head_to(method, path, &[("authorization", value)]))
            .map(|_| ())
            .map_err(|denial| (denial.reason, denial.placeholder.is_some()))
    };
    assert_eq!(at(Method::POST, "/v1/chat?x=/../y", &good), Ok(()));
    assert_eq!(at(Method::GET, "/v1/chat", &good), Err((Reason::MethodDenied, true)));
    assert_eq!(at(Method::POST, "/admin", &good), Err((Reason::PathDenied, true)));
    for path in [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1%2Fchat",
        "//v1/chat",
        "/v1/..;/admin",
        "/v1/..%20/admin",
    ] {
        assert_eq!(at(Method::POST, path, &good), Err((Reason::PathAmbiguous, true)), "{path}");
    }
    let foreign = Err((Reason::ForeignCredential, false));
    assert_eq!(at(Method::GET, "/v1/../admin", "Bearer not-one-of-ours"), foreign);
}

#[test]
fn connect_is_denied_even_where_every_method_is_listed() {
    let good = format!("Bearer {BEARER}");
    let connect = head_to(Method::CONNECT, "evil.example:443", &[("authorization", &good)]);
    assert_eq!(refused(&rules(), connect), Reason::ConnectDenied);
}

#[test]
fn a_placeholder_of_another_host_is_named_as_such() {
    for (field, value) in [
        ("authorization", format!("Bearer {OTHER_HOST}")),
        ("authorization", format!("token {OTHER_HOST}")),
        ("authorization", OTHER_HOST.to_owned()),
        ("x-api-key", OTHER_HOST.to_owned()),
        ("x-special-key", OTHER_HOST.to_owned()),
    ] {
        let denial = examine(&rules(), &head(&[(field, &value)])).unwrap_err();
        assert_eq!(denial.reason, Reason::PlaceholderWrongHost, "{field}: {value}");
        assert_eq!(denial.placeholder.unwrap().as_str(), OTHER_HOST);
    }
}

#[test]
fn a_placeholder_in_an_unlisted_place_is_named_as_such() {
    for (field, value) in [
        ("authorization", BEARER.to_owned()),
        ("authorization", format!("token {BEARER}")),
        ("authorization", format!("Digest {BEARER}")),
        ("authorization", format!("Bearer {TOKEN}")),
        ("authorization", format!("Bearer {RAW}")),
        ("x-api-key", BEARER.to_owned()),
        ("x-api-key", format!("Bearer {BEARER}")),
        ("x-special-key", format!("Bearer {RAW}")),
        ("x_special_key", RAW.to_owned()),
        ("ocp-apim-subscription-key", BEARER.to_owned()),
    ] {
        let denial = examine(&rules(), &head(&[(field, &value)])).unwrap_err();
        assert_eq!(denial.reason, Reason::PlaceholderWrongPlace, "{field}: {value}");
        assert!(denial.placeholder.is_some());
    }
}

#[test]
fn every_other_credential_is_foreign_and_told_apart_by_nothing() {
    for token in [
        "sk-proj-attackers-own-key".to_owned(),
        OTHER_GROUP.to_owned(),
        format!("aa{BEARER}bb"),
        format!("{BEARER}{BEARER}"),
        format!("{BEARER} {BEARER}"),
        format!("{BEARER},{BEARER}"),
        format!(" {BEARER}"),
        format!("{BEARER} "),
        format!("\"{BEARER}\""),
        BEARER.to_lowercase(),
        BEARER.replace('_', "%5F"),
        BEARER[1..].to_owned(),
        String::new(),
    ] {
        let value = format!("Bearer {token}");
        for field in ["authorization", "x-api-key"] {
            let denial = examine(&rules(), &head(&[(field, &value)])).unwrap_err();
            let credential = Some(format!("header {field}"));
            let foreign = Denial { credential, ..Reason::ForeignCredential.into() };
            assert_eq!(denial, foreign, "{field}: {value}");
        }
    }
}

#[test]
fn another_groups_fields_are_credential_fields_too() {
    let rules = rules_with(|api| {
        let mut other = api.bindings.pop().map(std::sync::Arc::unwrap_or_clone).unwrap();
        other.places = vec![header("x-theirs", "raw")];
        api.bindings.push(other.into());
    });
    let request = head(&[("x-theirs", OTHER_GROUP)]);
    assert_eq!(refused(&rules, request), Reason::ForeignCredential);
}

#[test]
fn two_credentials_are_refused_even_if_one_is_good() {
    let good = format!("Bearer {BEARER}");
    for second in [
        ("authorization", "Bearer sk-attackers-own"),
        ("authorization", good.as_str()),
        ("x-api-key", "sk-attackers-own"),
        ("X_Api_Key", "sk-attackers-own"),
        ("x-goog-api-key", ""),
        ("x-special-key", BEARER),
        ("x-special-key", OTHER_HOST),
        ("dd-application-key", "attackers-own"),
        ("cookie", "session=attackers-own"),
        ("authorization", &basic(&format!("git:{PASSWORD}"))),
    ] {
        for fields in [[("authorization", &*good), second], [second, ("authorization", &*good)]] {
            let reason = refused(&rules(), head(&fields));
            assert_eq!(reason, Reason::DuplicateCredential, "{fields:?}");
        }
    }
}

#[test]
fn placeholders_each_in_its_own_place_are_all_swapped() {
    let rules = rules_with(|api| {
        let mut more = api.bindings[1].as_ref().clone();
        more.places.push(header("x-second", "bearer"));
        api.bindings[1] = more.into();
    });
    let (bearer, token) = (format!("Bearer {BEARER}"), format!("token {TOKEN}"));
    let half = basic(&format!("git:{PASSWORD}"));
    let (user, both) = (basic(&format!("{USER}:x")), basic(&format!("{USER}:{PASSWORD}")));
    let (also_raw, sent_raw) = (format!("Bearer {RAW}"), format!("Bearer {}", value_of(RAW)));
    for value in [&bearer, &token, &half, &user, &both] {
        let alone = sent(&rules, &[("authorization", value)], "authorization");
        let fields = [("authorization", &**value), ("x-special-key", RAW), ("x-second", &also_raw)];
        for fields in [fields, [fields[2], fields[1], fields[0]]] {
            assert_eq!(sent(&rules, &fields, "authorization"), alone);
            assert_eq!(sent(&rules, &fields, "x-special-key"), value_of(RAW));
            assert_eq!(sent(&rules, &fields, "x-second"), sent_raw);
        }
    }
    let (_, substitution) =
        swapped(&rules, head(&[("authorization", &both), ("x-special-key", RAW)])).unwrap();
    let mut names: Vec<_> = substitution.placeholders().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [PASSWORD, USER, RAW]);
}

#[test]
fn a_credential_in_the_query_is_one_in_any_spelling() {
    let good = format!("Bearer {BEARER}");
    let at = |rules: &SubstitutionRules, query: &str, fields: &[(&str, &str)]| {
        examine(rules, &head_to(Method::POST, &format!("/v1/chat?{query}"), fields))
            .map(|_| ())
            .map_err(|denial| denial.reason)
    };
    let open = rules_with(|api| api.anonymous = Anonymous::Always);
    for query in [
        "key=own",
        "KEY=own",
        "a=b&api_key=own",
        "apiKey=own",
        "api-key[]=own",
        "a=b;token=own",
        "k%65y=own",
        "access_token=",
        "sig",
        "X-Amz-Signature=own",
        "user_key=own",
        "app.key=own",
    ] {
        let beside = at(&rules(), query, &[("authorization", &good)]);
        assert_eq!(beside, Err(Reason::DuplicateCredential), "{query}");
        for rules in [&rules(), &open] {
            assert_eq!(at(rules, query, &[]), Err(Reason::ForeignCredential), "{query}");
        }
    }
    for (text, reason) in
        [(BEARER, Reason::PlaceholderWrongPlace), (OTHER_HOST, Reason::PlaceholderWrongHost)]
    {
        let encoded = text.replace('_', "%5F");
        assert_eq!(at(&open, &format!("key={encoded}"), &[]), Err(reason));
    }
    for query in
        ["page_token=x", "a=key", "keyword=x", "code=x", "", "&&", "prompt=print%20key%3Dx"]
    {
        assert_eq!(at(&rules(), query, &[("authorization", &good)]), Ok(()), "{query}");
        assert_eq!(at(&open, query, &[]), Ok(()), "{query}");
    }
}

#[test]
fn a_query_name_like_a_credential_field_counts_too() {
    let at = |field: &'static str, query: &str| {
        let rules = rules_with(|api| {
            let mut own = api.bindings[0].as_ref().clone();
            own.places = vec![header(field, "raw")];
            api.bindings = vec![own.into()];
        });
        let target = format!("/v1/chat?{query}");
        let examined = examine(&rules, &head_to(Method::POST, &target, &[(field, BEARER)]));
        examined.map(|_| ()).map_err(|denial| denial.reason)
    };
    for (field, query) in [
        ("x-honeycomb-team", "X_Honeycomb_Team=own"),
        ("x-account", "xaccount[]=own"),
        ("x-functions-key", "code=own"),
    ] {
        assert_eq!(at(field, query), Err(Reason::DuplicateCredential), "{query}");
    }
    for query in ["code=us", "account=x"] {
        assert_eq!(at("x-account", query), Ok(()), "{query}");
    }
}

#[test]
fn a_denial_names_the_place_of_the_bad_credential() {
    let good = format!("Bearer {BEARER}");
    for (path, field, at) in [
        ("/", ("x-sort-key", "own-value"), "header x-sort-key"),
        ("/?api_KEY=own-value", ("accept", "*/*"), "query apikey"),
        ("/?a=b", ("cookie", "session=own-value"), "cookies"),
        ("/", ("authorization", &*good), "header authorization"),
    ] {
        let parts = head_to(Method::POST, path, &[("authorization", &good), field]);
        let denial = examine(&rules(), &parts).unwrap_err();
        assert_eq!(denial.credential.as_deref(), Some(at));
        assert_eq!(denial.reason, Reason::DuplicateCredential);
    }
    let alone = examine(&rules(), &head(&[("x-sort-key", "own-value")])).unwrap_err();
    assert_eq!(alone.credential.as_deref(), Some("header x-sort-key"));
}

#[test]
fn what_the_api_lists_as_plain_is_no_credential() {
    let rules = rules_with(|api| {
        api.plain = vec![
            Plain::Header(http::HeaderName::from_static("x-sort-key")),
            Plain::Query("key".into()),
        ];
    });
    let good = format!("Bearer {BEARER}");
    let sort = [("authorization", &*good), ("x-sort-key", "name")];
    assert!(examine(&rules, &head_to(Method::POST, "/v1/chat?key=1", &sort)).is_ok());
    let denied = |path: &str, fields: &[(&str, &str)]| {
        examine(&rules, &head_to(Method::POST, path, fields)).unwrap_err().reason
    };
    assert_eq!(denied("/v1/chat?api_key=1", &sort), Reason::DuplicateCredential);
    let group = [("authorization", &*good), ("x-group-key", "name")];
    assert_eq!(denied("/v1/chat", &group), Reason::DuplicateCredential);
}

#[test]
fn a_cookie_is_a_credential_unless_the_api_keeps_cookies() {
    let good = format!("Bearer {BEARER}");
    let beside = [("authorization", &*good), ("cookie", "a=1"), ("cookie", "b=2")];
    assert_eq!(refused(&rules(), head(&beside)), Reason::DuplicateCredential);
    assert_eq!(refused(&rules(), head(&beside[1..])), Reason::ForeignCredential);
    let ours = format!("a=1; session={BEARER}");
    assert_eq!(refused(&rules(), head(&[("cookie", &ours)])), Reason::PlaceholderWrongPlace);
    let kept = rules_with(|api| api.response.cookies = true);
    assert!(examine(&kept, &head(&beside)).is_ok());
    assert_eq!(refused(&kept, head(&beside[1..])), Reason::PlaceholderMissing);
}

#[test]
fn a_credential_beyond_visible_ascii_is_malformed() {
    for bytes in [&b"Bearer \xff"[..], b"Bearer\tx", "Bearer \u{fc}".as_bytes()] {
        let mut parts = head(&[]);
        parts.headers.insert("authorization", HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(refused(&rules(), parts), Reason::CredentialMalformed, "{bytes:?}");
    }
}

#[test]
fn connection_cannot_strip_a_credential() {
    let good = format!("Bearer {BEARER}");
    for nominated in
        ["authorization", "Authorization", "close, AUTHORIZATION", "x-special-key ,te", "x_api_key"]
    {
        let request = head(&[("authorization", &good), ("connection", nominated)]);
        assert_eq!(refused(&rules(), request), Reason::HttpMalformed, "{nominated}");
    }
    let plain = head(&[("authorization", &good), ("connection", "keep-alive, te")]);
    assert!(examine(&rules(), &plain).is_ok());
}

#[test]
fn placeholder_text_outside_credential_fields_is_ordinary_text() {
    let good = format!("Bearer {BEARER}");
    let fields = [("authorization", good.as_str()), ("user-agent", RAW), ("x-note", TOKEN)];
    let (parts, _) = swapped(&rules(), head(&fields)).unwrap();
    assert_eq!(parts.headers["user-agent"], RAW);
    assert_eq!(parts.headers["x-note"], TOKEN);
}

#[test]
fn without_a_value_the_head_keeps_nothing_but_placeholders() {
    let pair = basic(&format!("{USER}:{PASSWORD}"));
    let mut parts = head(&[("authorization", &pair)]);
    let substitution = examine(&rules(), &parts).unwrap();
    let outcome = substitution.apply(&mut parts, |binding| match binding.placeholder.as_str() {
        PASSWORD => Err(SecretCause::VaultSealed),
        _ => lookup(binding),
    });
    assert_eq!(outcome, Err(SecretCause::VaultSealed));
    assert_eq!(parts.headers["authorization"], *pair);
}

#[test]
fn a_colon_in_a_user_cannot_reach_the_password() {
    let mut parts = head(&[("authorization", &basic(&format!("{USER}:")))]);
    let substitution = examine(&rules(), &parts).unwrap();
    let colon = zeroize::Zeroizing::new(b"a-value:with-a-colon".to_vec());
    let value = std::sync::Arc::new(crate::secrets::SecretValue::load(colon, 16).ok().unwrap());
    let outcome = substitution.apply(&mut parts, |_| Ok(value.clone()));
    assert_eq!(outcome, Err(SecretCause::ValueInvalid));
}

#[test]
fn a_credential_in_the_trailers_is_seen() {
    let rules = rules();
    for name in ["authorization", "proxy-authorization", "x-api-key", "x_api_key", "x-special-key"]
    {
        let mut trailers = HeaderMap::new();
        assert!(!trailers_carry_credential(&rules, &trailers));
        trailers.insert(http::HeaderName::from_static(name), HeaderValue::from_static("x"));
        assert!(trailers_carry_credential(&rules, &trailers), "{name}");
    }
}

#[test]
fn placeholders_of_the_group_are_recognised_and_no_others() {
    let rules = rules();
    let known = |text: &str| rules.elsewhere(text.as_bytes()).is_some();
    assert!(known(BEARER) && known(OTHER_HOST));
    assert!(!known(OTHER_GROUP) && !known(""));
}
