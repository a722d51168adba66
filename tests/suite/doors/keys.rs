//! Who is let in, and what is told of whom.

use muster_tests::api::Api;
use serde_json::json;

use super::place::{Place, free_port};
use super::{CHAT, chat};

#[test]
fn only_a_key_that_may_use_the_deployment_is_let_in() {
    let place = Place::new();
    let door = place.serve(&json!({}));
    let scoped = |ids| door.anybody().with_key(&place.key(&ids));
    let ask = |caller: &Api| caller.post(CHAT, &chat("ours"));
    for caller in [door.anybody(), door.anybody().with_key("sk-nobody-has-this-key-at-all")] {
        for answer in [ask(&caller), caller.get("/v1/models"), caller.post("/tokenize", &json!({"prompt": "a b"}))] {
            answer.is_openai_error(401, "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert!(!answer.text.contains("ours"));
        }
    }
    for caller in [scoped(json!([])), scoped(json!([door.id + 1]))] {
        for answer in [ask(&caller), caller.get("/v1/models")] {
            answer.is_openai_error(403, "model_access_denied");
            assert!(!answer.text.contains("ours"), "a stranger is not told what is served here: {answer}");
        }
    }
    // An administrator's token is none for models.
    ask(&door.anybody().with_key("token-of-the-tests-administrator")).is_openai_error(401, "invalid_api_key");
    for caller in [scoped(json!([door.id])), scoped(json!([door.id + 1, door.id])), door.user()] {
        let _ = ask(&caller).expect(200);
    }
    assert!(door.asked().len() == 1, "nobody else got through: {:?}", door.asked());
    assert!(door.asked()[0].ends_with(" 3.0"), "{:?}", door.asked());
}

#[test]
fn each_deployment_has_a_port_of_its_own_and_a_key_for_one_is_none_for_the_other() {
    let place = Place::new();
    let names = |name: &str| json!({"port": free_port(), "engine_args": {"served_model_name": name}});
    let (first, second) = (place.serve(&names("first")), place.serve(&names("second")));
    assert_ne!(first.port, second.port);
    let key = place.key(&json!([first.id]));
    let _ = first.anybody().with_key(&key).post(CHAT, &chat("first")).expect(200);
    second.anybody().with_key(&key).post(CHAT, &chat("second")).is_openai_error(403, "model_access_denied");
    // What one serves, the other does not, whoever asks.
    let other = first.user().post(CHAT, &chat("second"));
    other.is_openai_error(404, "model_not_found");
    assert!(other.message().contains("first") && !other.message().contains("it may use: second"), "{other}");
    for (door, name) in [(&first, "first"), (&second, "second")] {
        let listed = door.user().get("/v1/models").expect(200).body;
        let ids: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
        assert_eq!(ids, [&json!(name)]);
    }
}
