//! The model registry (seed 000, with the fields of seed 002).

use prost::Message;

use super::keys::put_secret;
use super::names::{claim, claim_unique, release};
use super::step::{Damaged, Step, Stop, Stored, check, refused};
use super::view::View;
use crate::ids::ModelId;
use crate::rows::{self, Model, ModelField, ModelFields, NameClaim, RefusalKind, name_claim};

/// The name under which a model's API key is sealed.
#[must_use]
pub fn api_key_name(id: ModelId) -> String {
    format!("model/{id}/apiKey")
}

/// `{provider}/{slug}`: lower case, every run of other characters one dash, none at the ends. It is made unique when it is
/// committed.
#[must_use]
pub fn litellm_base(provider: &str, name: &str) -> String {
    let mut slug = String::new();
    for character in name.chars().flat_map(char::to_lowercase) {
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    format!("{}/{}", provider.to_lowercase(), if slug.is_empty() { "model" } else { slug })
}

/// Whether a name looks like an identifier, which no name may.
#[must_use]
pub fn is_id(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

fn id_of(bytes: &[u8]) -> Result<ModelId, Stop> {
    ModelId::from_slice(bytes)
        .ok_or_else(|| Stop::Damaged(Damaged { table: 0, why: "a model's id is not a UUID".to_owned() }))
}

fn holder(id: ModelId) -> NameClaim {
    NameClaim { holder: Some(name_claim::Holder::Model(id.as_bytes().to_vec().into())) }
}

fn existing(step: &Step<'_>, id: ModelId) -> Result<Stored<Model>, Stop> {
    step.get::<Model>(id.as_bytes())?.ok_or_else(|| refused(RefusalKind::NotFound, format!("there is no model {id}")))
}

fn answer(step: &Step<'_>, model: Model) -> rows::ModelAnswer {
    rows::ModelAnswer { mod_index: step.index, model: Some(model) }
}

pub(super) fn create(step: &mut Step<'_>, command: &rows::CreateModel) -> Result<rows::ModelAnswer, Stop> {
    let id = id_of(&command.id)?;
    if step.get::<Model>(id.as_bytes())?.is_some() {
        return Err(refused(RefusalKind::Conflict, format!("there is a model {id} already")));
    }
    let fields = command.fields.clone().unwrap_or_default();
    claim(step, &command.name_key, fields.name(), &holder(id))?;
    let litellm_name = claim_unique(step, &command.litellm_base, &holder(id))?;
    put_secret(step, &api_key_name(id), command.api_key.as_ref())?;
    let model = Model {
        id: command.id.clone(),
        fields: Some(fields),
        name_key: command.name_key.clone(),
        litellm_name,
        has_api_key: command.api_key.is_some(),
        created_index: step.index,
        created_ms: step.now.0,
        updated_ms: step.now.0,
        created_by: step.origin.principal.clone(),
    };
    step.put(command.id.clone(), &model)?;
    Ok(answer(step, model))
}

pub(super) fn update(step: &mut Step<'_>, command: &rows::UpdateModel) -> Result<rows::ModelAnswer, Stop> {
    let id = id_of(&command.id)?;
    let Stored { row: mut model, mod_index } = existing(step, id)?;
    check(command.precondition.as_ref(), mod_index)?;
    let changes = command.changes.clone().unwrap_or_default();
    if let Some(name) = &changes.name
        && command.name_key != model.name_key
    {
        claim(step, &command.name_key, name, &holder(id))?;
        // The proxy's name stays the model's for as long as it lives, also when its own was the same for a while.
        if model.name_key != model.litellm_name {
            release(step, &model.name_key);
        }
        model.name_key.clone_from(&command.name_key);
    }
    let mut fields = model.fields.take().unwrap_or_default();
    merge(&mut fields, &changes)?;
    for field in &command.clear {
        clear(&mut fields, ModelField::try_from(*field).unwrap_or_default());
    }
    model.fields = Some(fields);
    if command.clear_api_key || command.api_key.is_some() {
        put_secret(step, &api_key_name(id), command.api_key.as_ref())?;
        model.has_api_key = command.api_key.is_some();
    }
    model.updated_ms = step.now.0;
    step.put(command.id.clone(), &model)?;
    Ok(answer(step, model))
}

pub(super) fn delete(step: &mut Step<'_>, command: &rows::DeleteModel) -> Result<rows::ModelAnswer, Stop> {
    let id = id_of(&command.id)?;
    let Stored { row: model, mod_index } = existing(step, id)?;
    check(command.precondition.as_ref(), mod_index)?;
    release(step, &model.name_key);
    release(step, &model.litellm_name);
    put_secret(step, &api_key_name(id), None)?;
    step.remove::<Model>(command.id.clone());
    Ok(rows::ModelAnswer { mod_index, model: Some(model) })
}

/// Fields that were given replace what was there: protobuf's own rule for optional fields.
fn merge(fields: &mut ModelFields, changes: &ModelFields) -> Result<(), Stop> {
    let merged = fields.merge(changes.encode_to_vec().as_slice());
    merged.map_err(|error| Stop::Damaged(Damaged { table: 0, why: error.to_string() }))
}

fn clear(fields: &mut ModelFields, field: ModelField) {
    match field {
        ModelField::Unspecified => {}
        ModelField::Description => fields.description = None,
        ModelField::BaseUrl => fields.base_url = None,
        ModelField::ApiKeyRef => fields.api_key_ref = None,
        ModelField::DefaultTemperature => fields.default_temperature = None,
        ModelField::DefaultTopP => fields.default_top_p = None,
        ModelField::PriceInput => fields.price_input = None,
        ModelField::PriceOutput => fields.price_output = None,
        ModelField::PriceCachedInput => fields.price_cached_input = None,
        ModelField::Metadata => fields.metadata = None,
        ModelField::NodeId => fields.node_id = None,
    }
}

impl View {
    /// A model of the registry.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn model(&self, id: ModelId) -> Result<Option<Stored<Model>>, Damaged> {
        self.get(id.as_bytes())
    }

    /// The model that a caller means: by id, or by exact name.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn find_model(&self, reference: &str) -> Result<Option<Stored<Model>>, Damaged> {
        if let Ok(id) = uuid::Uuid::try_parse(reference) {
            return self.model(ModelId(id));
        }
        let claim = self.get::<NameClaim>(super::names::name_key(reference).as_bytes())?;
        let Some(name_claim::Holder::Model(id)) = claim.and_then(|claim| claim.row.holder) else { return Ok(None) };
        let model = self.get::<Model>(&id)?;
        // Exactly as it is written: names that differ in case only are the same name, but not the same spelling.
        Ok(model.filter(|model| model.row.fields.as_ref().is_some_and(|fields| fields.name() == reference)))
    }

    /// The model that a client of the gateway means: by its exact name, or by its name at the proxy.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn find_served(&self, name: &str) -> Result<Option<Stored<Model>>, Damaged> {
        let claim = self.get::<NameClaim>(super::names::name_key(name).as_bytes())?;
        let Some(name_claim::Holder::Model(id)) = claim.and_then(|claim| claim.row.holder) else { return Ok(None) };
        let model = self.get::<Model>(&id)?;
        let is_meant =
            |row: &Model| row.litellm_name == name || row.fields.as_ref().is_some_and(|fields| fields.name() == name);
        Ok(model.filter(|model| is_meant(&model.row)))
    }

    /// Every model, in the order of their ids.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn models(&self) -> Result<Vec<Stored<Model>>, Damaged> {
        self.rows(&[]).map(|row| row.map(|(_, model)| model)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::litellm_base;

    #[test]
    fn the_proxys_name_is_provider_and_slug() {
        for (provider, name, expected) in [
            ("openai-compatible", "Llama 3 (local)", "openai-compatible/llama-3-local"),
            ("openai", "  --GPT  4o!", "openai/gpt-4o"),
            ("OpenAI", "a__b..c", "openai/a-b-c"),
            ("openai", "\u{6a21}\u{578b}", "openai/model"),
        ] {
            assert_eq!(litellm_base(provider, name), expected);
        }
    }
}
