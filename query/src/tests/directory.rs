//! Reads of users, groups, locations, applications and lookup tables as clients make them.

use axum::Router;
use schemas::row::ColumnType::{BigInteger, Boolean, Text};
use serde_json::{Value, json};

use super::{
    rest::{form, get, ids},
    world::{self, FakeViews, visits},
};

fn user(id: &str, username: &str, extra: &Value) -> Value {
    let mut doc = json!({
        "_id": id, "doc_type": "CommCareUser", "username": username, "first_name": "", "last_name": "Devi",
        "location_id": null, "is_active": true, "user_data": {"role": "asha"},
    });
    doc.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    doc
}

fn place(id: &str, kind: &str, parent: Option<&str>, extra: &Value) -> Value {
    let mut doc = json!({
        "_id": id, "doc_type": "SQLLocation", "location_id": id, "name": format!("Place {id}"), "site_code": format!("s-{id}"),
        "location_type": kind, "parent_id": parent, "parent_location_id": parent, "is_archived": false,
    });
    doc.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    doc
}

fn app() -> Router {
    let users = world::others(
        &[("username", Text), ("location_id", Text), ("is_active", Boolean)],
        &[
            (user("u3", "zeenat", &json!({})), "2024-01-01"),
            (
                user(
                    "u1",
                    "asha",
                    &json!({"location_id": "v1", "assigned_location_ids": ["v1", "d1"], "email": "a@x.org"}),
                ),
                "2024-01-02",
            ),
            (user("u2", "bela", &json!({"is_active": false})), "2024-01-03"),
        ],
    );
    let groups = world::others(
        &[("name", Text)],
        &[
            (json!({"_id": "g1", "name": "North", "users": ["u2", "u1", "gone"], "case_sharing": true}), "2024-01-01"),
            (json!({"_id": "g2", "name": "East", "users": ["u1"], "metadata": {"k": "v"}}), "2024-01-02"),
        ],
    );
    let places = world::others(
        &[
            ("name", Text),
            ("site_code", Text),
            ("external_id", Text),
            ("location_type", Text),
            ("parent_id", Text),
            ("is_archived", Boolean),
        ],
        &[
            (place("s1", "state", None, &json!({"latitude": "10.5", "longitude": 20})), "2024-01-01T00:00:01"),
            (place("d1", "t-district", Some("s1"), &json!({"metadata": {"pin": "1"}})), "2024-01-03T00:00:01"),
            (place("v1", "Village", Some("d1"), &json!({"external_id": "x 1"})), "2024-01-02T00:00:01"),
            (place("v2", "Village", Some("d1"), &json!({"is_archived": true})), "2024-01-04T00:00:01"),
        ],
    );
    let types = world::others(
        &[("name", Text), ("code", Text)],
        &[
            (
                json!({"_id": "t-village", "name": "Village", "code": "vil", "parent": "t-district", "shares_cases": true}),
                "2024-01-01",
            ),
            (
                json!({"_id": "t-district", "name": "District", "code": "dis", "parent": "/a/demo/api/v0.5/location_type/state/"}),
                "2024-01-02",
            ),
        ],
    );
    let tables = world::others(
        &[("tag", Text)],
        &[(
            json!({"_id": "t1", "tag": "fruit", "is_global": true, "fields": ["name", {"field_name": "size", "properties": ["unit"]}], "item_attributes": []}),
            "2024-01-01",
        )],
    );
    let rows = world::others(
        &[("data_type_id", Text), ("sort_key", BigInteger)],
        &[
            (json!({"_id": "r2", "data_type_id": "t1", "sort_key": 2, "fields": {"name": "fig"}}), "2024-01-01"),
            (
                json!({"_id": "r1", "data_type_id": "t1", "sort_key": 1, "item_attributes": {"a": "b"}, "fields": {
                    "name": {"field_list": [{"field_value": "pear", "properties": {}}]},
                    "size": {"field_list": [{"field_value": "9", "properties": {"unit": "cm"}}]}}}),
                "2024-01-02",
            ),
            (json!({"_id": "r0", "data_type_id": "gone", "fields": {"name": "lost"}}), "2024-01-03"),
        ],
    );
    let applications = world::others(
        &[("name", Text)],
        &[
            (
                json!({"_id": "app", "doc_type": "Application", "name": "Mothers", "version": 7, "langs": ["en"], "modules": [
                    {"name": {"en": "Women"}, "case_type": "pregnancy", "case_properties": ["edd"], "unique_id": "m1", "forms": [
                        {"xmlns": "http://x/1", "name": {"en": "Visit"}, "unique_id": "f1", "questions": [], "secret": 1},
                        {"xmlns": "http://x/2", "name": "Birth"}]}]}),
                "2024-01-01",
            ),
            (
                json!({"_id": "build", "name": "Mothers", "copy_of": "app", "version": 6, "is_released": true,
                    "built_on": "2024-01-01T10:00:00Z", "modules": []}),
                "2024-01-02",
            ),
        ],
    );
    let mut late = form("f2", "http://x/1", "XFormInstance", "2024-02-20T10:00:00.000000Z");
    late["form"]["meta"]["timeEnd"] = json!("2024-01-30T10:00:00Z");
    let forms = world::forms(&[
        (form("f1", "http://x/1", "XFormInstance", "2024-02-01T10:00:00.000000Z"), "2024-02-01"),
        (late, "2024-02-20"),
        (form("f3", "http://x/1", "XFormArchived", "2024-02-20T10:00:00.000000Z"), "2024-02-21"),
    ]);
    let tables = vec![
        ("user_documents", users),
        ("group_documents", groups),
        ("location_documents", places),
        ("location_type_documents", types),
        ("lookup_table_documents", tables),
        ("lookup_row_documents", rows),
        ("application_documents", applications),
        ("form_documents", forms),
    ];
    let views = FakeViews::new(world::snapshot(visits(false).0, tables));
    crate::routes(world::state(&views, world::quick()))
}

/// Ids in the list of a resource.
async fn listed(app: &Router, resource: &str) -> Vec<String> {
    let (status, body) = get(app, &format!("/a/demo/api/v0.5/{resource}")).await;
    assert_eq!(status, 200, "{resource}: {body}");
    let key = if resource.starts_with("location?") { "location_id" } else { "id" };
    ids(&body["objects"], key).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn every_resource_answers_at_each_of_its_addresses() {
    let app = app();
    for (resource, versions, id) in [
        ("user", &["v1"][..], "u1"),
        ("group", &["v1"], "g1"),
        ("location", &["v1", "v2"], "d1"),
        ("location_type", &["v1"], "t-village"),
        ("application", &["v1"], "app"),
        ("fixture", &["v1"], "r1"),
        ("lookup_table", &["v1"], "t1"),
        ("lookup_table_item", &["v1", "v2"], "r1"),
    ] {
        let newer = versions.iter().map(|version| format!("/a/demo/api/{resource}/{version}"));
        for base in newer.chain([format!("/a/demo/api/v0.5/{resource}")]) {
            for slash in ["", "/"] {
                let (status, body) = get(&app, &format!("{base}{slash}?format=json")).await;
                assert_eq!(status, 200, "{base}: {body}");
                assert_eq!(body["meta"]["offset"], 0, "{base}");
                assert!(body["meta"]["next"].is_null() && body["objects"][0].is_object(), "{base}: {body}");
                let (status, object) = get(&app, &format!("{base}/{id}{slash}")).await;
                assert_eq!(status, 200, "{base}");
                assert!(body["objects"].as_array().unwrap().contains(&object), "{base}: {object}");
                assert_eq!(get(&app, &format!("{base}/none{slash}")).await, (404, Value::Null), "{base}");
            }
        }
        if resource != "application" {
            assert_eq!(get(&app, &format!("/a/demo/api/v0.5/{resource}/?limit=x")).await.0, 400);
        }
    }
}

#[tokio::test]
async fn users_have_their_groups_places_and_data() {
    let app = app();
    assert_eq!(listed(&app, "user").await, ["u1", "u3"], "by name, without the archived");
    assert_eq!(listed(&app, "user?archived=true").await, ["u2"]);
    assert_eq!(listed(&app, "user?group=g1").await, ["u1"]);
    assert_eq!(listed(&app, "user?group=g1&archived=true").await, ["u2"]);
    let (status, body) = get(&app, "/a/demo/api/v0.5/user/?group=none").await;
    assert_eq!((status, &body["error"]), (400, &json!("Project demo has no group with id=none")));
    let (_, object) = get(&app, "/a/demo/api/user/v1/u1/").await;
    assert_eq!(
        object,
        json!({
            "id": "u1", "username": "asha@demo.commcarehq.org", "first_name": "", "last_name": "Devi",
            "default_phone_number": null, "email": "a@x.org", "phone_numbers": [], "groups": ["g1", "g2"],
            "primary_location": "v1", "locations": ["v1", "d1"], "eulas": "",
            "user_data": {"role": "asha", "commcare_project": "demo", "commcare_location_id": "v1",
                "commcare_location_ids": "v1 d1", "commcare_primary_case_sharing_id": "v1"},
            "resource_uri": "/a/demo/api/v0.5/user/u1/",
        })
    );
    let (_, body) = get(&app, "/a/demo/api/v0.5/user/?limit=1&offset=1").await;
    assert_eq!(
        body["meta"],
        json!({"limit": 1, "offset": 1, "total_count": 2, "next": null, "previous": "?limit=1&offset=0"})
    );
    let (_, body) = get(&app, "/a/demo/api/v0.5/user/?extras=true").await;
    // The snapshot is of 1 March 2024.
    assert_eq!(
        body["objects"][0]["extras"],
        json!({"submitted_last_30": 2, "completed_last_30": 0, "submitted_last_month": 2, "completed_last_month": 0})
    );
}

#[tokio::test]
async fn groups_show_their_active_members() {
    let app = app();
    assert_eq!(listed(&app, "group").await, ["g2", "g1"], "by name");
    let (_, object) = get(&app, "/a/demo/api/v0.5/group/g1/").await;
    assert_eq!(
        object,
        json!({"id": "g1", "name": "North", "domain": "demo", "case_sharing": true, "reporting": false, "metadata": {},
            "users": ["u1"], "resource_uri": "/a/demo/api/v0.5/group/g1/"})
    );
}

#[tokio::test]
async fn references_between_locations_are_the_addresses_of_what_is_listed() {
    let app = app();
    let (_, types) = get(&app, "/a/demo/api/v0.5/location_type/").await;
    assert_eq!(ids(&types["objects"], "code"), ["state", "dis", "vil"]);
    let (_, places) = get(&app, "/a/demo/api/v0.5/location/").await;
    assert_eq!(ids(&places["objects"], "location_id"), ["d1", "s1", "v1"], "without the archived");
    let uris = |list: &Value| ids(&list["objects"], "resource_uri").into_iter().map(str::to_owned).collect::<Vec<_>>();
    for place in places["objects"].as_array().unwrap() {
        assert!(uris(&types).contains(&place["location_type"].as_str().unwrap().to_owned()), "{place}");
        assert!(place["parent"].is_null() || uris(&places).contains(&place["parent"].as_str().unwrap().to_owned()));
        assert!(place["id"].is_u64());
        let (_, again) = get(&app, place["resource_uri"].as_str().unwrap()).await;
        assert_eq!(again, *place);
    }
    for of in types["objects"].as_array().unwrap() {
        assert!(of["parent"].is_null() || uris(&types).contains(&of["parent"].as_str().unwrap().to_owned()), "{of}");
        assert_eq!(get(&app, of["resource_uri"].as_str().unwrap()).await.1, *of);
        assert_eq!(get(&app, &format!("/a/demo/api/v0.5/location_type/{}/", of["id"])).await.1, *of);
    }
    let village = &types["objects"][2];
    assert_eq!((&village["name"], &village["shares_cases"]), (&json!("Village"), &json!(true)));
    let (_, state) = get(&app, "/a/demo/api/v0.5/location/s1/").await;
    assert_eq!((&state["latitude"], &state["longitude"]), (&json!("10.5"), &json!("20")));
    assert_eq!(state["last_modified"], "2024-01-01T00:00:01.000000");
    assert_eq!(get(&app, "/a/demo/api/v0.5/location/v2/").await.0, 404, "archived");
    for (query, found) in [
        ("site_code=s-d1", &["d1"][..]),
        ("external_id=x%201", &["v1"]),
        ("last_modified__gte=2024-01-02", &["d1", "v1"]),
        ("last_modified__lt=2024-01-02", &["s1"]),
        ("created_at__gt=2024-01-02", &[]),
        ("latitude__gt=10&latitude__lte=10.5", &["s1"]),
        ("unknown=1", &["d1", "s1", "v1"]),
    ] {
        assert_eq!(listed(&app, &format!("location?{query}")).await, found, "{query}");
    }
    for bad in
        ["name=x", "last_modified__near=2024-01-01", "last_modified__gt=soon", "latitude=north", "site_code__gt=a"]
    {
        assert_eq!(get(&app, &format!("/a/demo/api/v0.5/location/?{bad}")).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn locations_of_version_2_name_type_and_parent_in_place() {
    let app = app();
    let (_, object) = get(&app, "/a/demo/api/location/v2/d1").await;
    assert_eq!(
        object,
        json!({"domain": "demo", "location_id": "d1", "name": "Place d1", "site_code": "s-d1",
            "last_modified": "2024-01-03T00:00:01.000000", "latitude": null, "longitude": null,
            "location_data": {"pin": "1"}, "location_type_code": "dis", "location_type_name": "District",
            "parent_location_id": "s1"})
    );
    for (query, found) in [
        ("", &["d1", "s1", "v1"][..]),
        ("order_by=last_modified", &["s1", "v1", "d1"]),
        ("order_by=-last_modified&limit=2", &["d1", "v1"]),
        ("location_type_code=vil", &["v1"]),
        ("location_type_code=state", &["s1"]),
        ("location_type_code=none", &[]),
        ("parent_location_id=s1", &["d1"]),
        ("name=Place%20v1", &["v1"]),
        ("last_modified.gt=2024-01-02&last_modified.lte=2024-01-03", &["d1", "v1"]),
    ] {
        let (_, body) = get(&app, &format!("/a/demo/api/v0.6/location/?{query}")).await;
        assert_eq!(ids(&body["objects"], "location_id"), found, "{query}");
    }
    assert_eq!(get(&app, "/a/demo/api/location/v2/?order_by=name").await.0, 400);
    assert_eq!(get(&app, "/a/demo/api/location/v2/?limit=9999").await.1["meta"]["limit"], 5000);
}

#[tokio::test]
async fn applications_show_modules_forms_and_builds() {
    let app = app();
    let (_, body) = get(&app, "/a/demo/api/v0.5/application?limit=1").await;
    assert_eq!(body["meta"], json!({"limit": null, "offset": 0, "total_count": 1, "next": null, "previous": null}));
    let (_, object) = get(&app, "/a/demo/api/v0.5/application/app/?format=json").await;
    assert_eq!(
        object,
        json!({
            "id": "app", "name": "Mothers", "version": 7, "is_released": null, "built_on": null, "build_comment": null,
            "built_from_app_id": null, "resource_uri": "/a/demo/api/v0.5/application/app/",
            "modules": [{"name": {"en": "Women"}, "case_type": "pregnancy", "case_properties": ["edd"], "unique_id": "m1",
                "forms": [
                    {"xmlns": "http://x/1", "name": {"en": "Visit"}, "unique_id": "f1", "questions": []},
                    {"xmlns": "http://x/2", "name": {"en": "Birth"}, "unique_id": "", "questions": []}]}],
            "versions": [{"id": "build", "built_on": "2024-01-01T10:00:00.000000Z", "build_comment": "", "is_released": true,
                "version": 6}],
        })
    );
    let (_, extras) = get(&app, "/a/demo/api/v0.5/application/app/?format=json&extras=true").await;
    assert_eq!((&extras["langs"], &extras["doc_type"]), (&json!(["en"]), &json!("Application")));
    assert_eq!(extras["modules"], object["modules"]);
    let (_, build) = get(&app, "/a/demo/api/application/v1/build/").await;
    assert_eq!(
        (&build["built_from_app_id"], &build["built_on"]),
        (&json!("app"), &json!("2024-01-01T10:00:00.000000"))
    );
}

#[tokio::test]
async fn lookup_tables_and_their_items() {
    let app = app();
    let (_, table) = get(&app, "/a/demo/api/v0.5/lookup_table/t1/").await;
    assert_eq!(
        table,
        json!({"id": "t1", "tag": "fruit", "is_global": true, "item_attributes": [],
            "fields": [{"field_name": "name", "properties": []}, {"field_name": "size", "properties": ["unit"]}],
            "resource_uri": "/a/demo/api/v0.5/lookup_table/t1/"})
    );
    assert_eq!(listed(&app, "lookup_table_item").await, ["r0", "r1", "r2"], "by table and sort key");
    let (_, item) = get(&app, "/a/demo/api/lookup_table_item/v2/r1/").await;
    let size = json!({"field_list": [{"field_value": "9", "properties": {"unit": "cm"}}]});
    assert_eq!(
        item,
        json!({"id": "r1", "data_type_id": "t1", "sort_key": 1, "item_attributes": {"a": "b"},
            "fields": {"name": {"field_list": [{"field_value": "pear", "properties": {}}]}, "size": size},
            "resource_uri": "/a/demo/api/v0.5/lookup_table_item/r1/"})
    );
    assert_eq!(
        get(&app, "/a/demo/api/v0.5/lookup_table_item/r2/").await.1["fields"]["name"],
        json!({"field_list": [{"field_value": "fig", "properties": {}}]})
    );
    assert_eq!(listed(&app, "fixture?fixture_type=fruit").await, ["r1", "r2"]);
    assert_eq!(listed(&app, "fixture?fixture_type_id=gone").await, ["r0"]);
    assert_eq!(listed(&app, "fixture?fixture_type=none").await, Vec::<String>::new());
    assert_eq!(listed(&app, "fixture?limit=1").await, ["r0"]);
    let (_, fixture) = get(&app, "/a/demo/api/v0.5/fixture/r1/").await;
    assert_eq!(
        fixture,
        json!({"id": "r1", "fixture_type": "fruit", "fields": {"name": "pear", "size": size}, "resource_uri": ""})
    );
    assert!(get(&app, "/a/demo/api/v0.5/fixture/r0/").await.1["fixture_type"].is_null());
}
