//! Names, words and answers of the sample program. Some hold accents, another script, apostrophes, `&` and `<` on purpose.

/// First names.
pub(crate) const FIRST: &[&str] = &[
    "Asha", "Rani", "Sunita", "Meena", "Kavita", "Pooja", "Lakshmi", "Fatima", "Zainab", "Amina", "Grace", "Mercy",
    "Esther", "Ruth", "Naomi", "Aïcha", "Mariama", "Awa", "Hawa", "Ngozi", "Chipo", "Tendai", "Wanjiru", "Achieng",
    "Nakato", "Beatriz", "Lucía", "Ana", "Rosa", "Inês", "आशा", "सुनीता", "मीना", "कविता", "पूजा",
];
/// Family names.
pub(crate) const LAST: &[&str] = &[
    "Devi", "Kumari", "Sharma", "Yadav", "Khan", "Begum", "Okafor", "Mwangi", "Otieno", "Banda", "Phiri", "Moyo",
    "Dlamini", "Diallo", "Traoré", "Keïta", "Santos", "Pereira", "Gómez", "Quispe", "Mamani", "Tesfaye", "Bekele",
    "Kamau", "Njoroge", "Das", "Roy", "Patel", "Singh", "O'Brien",
];
/// What notes are made of.
pub(crate) const WORDS: &[&str] = &[
    "patient", "reports", "mild", "swelling", "of", "feet", "advised", "rest", "more", "water", "iron", "tablets",
    "given", "husband", "present", "at", "home", "next", "visit", "agreed", "blood", "pressure", "measured", "twice",
    "baby", "moves", "well", "nausea", "in", "the", "morning", "walks", "far", "to", "clinic", "transport", "planned",
    "delivery", "kit", "shown", "danger", "signs", "explained", "diet", "lentils", "greens", "eggs", "bed", "net",
    "used", "referral", "slip", "written", "supervisor", "called", "temperature", "normal", "urine", "test", "done",
    "sugar", "absent", "headache", "at night", "family", "supports", "birth", "facility", "&", "asks", "about",
    "costs", "weight", "gain", "<", "expected",
];
/// Items handed out on visits.
pub(crate) const ITEMS: &[&str] =
    &["IFA", "CALCIUM", "ORS", "TT", "PARACETAMOL", "ALBENDAZOLE", "FOLIC", "CONDOM", "KIT", "ZINC"];
/// Danger signs.
pub(crate) const SIGNS: &[&str] = &["bleeding", "fever", "headache", "swelling", "convulsion"];
/// Levels of risk.
pub(crate) const RISK: &[&str] = &["low", "medium", "high"];
/// Blood groups.
pub(crate) const BLOOD: &[&str] = &["A+", "B+", "O+", "AB+", "A-", "B-", "O-"];
/// Vaccines, in the order they are given.
pub(crate) const VACCINES: &[&str] = &["bcg", "opv0", "hepb", "penta1", "opv1"];
/// Where a child is born.
pub(crate) const BIRTH_PLACES: &[&str] = &["facility", "home", "transit"];
/// Why a case is closed.
pub(crate) const CLOSE_REASONS: &[&str] = &["migrated", "completed", "died", "refused"];
/// Questions about the household.
pub(crate) const HOUSEHOLD: &[&str] = &[
    "water_source", "toilet_type", "cooking_fuel", "floor_material", "wall_material", "roof_material", "electricity",
    "mobile_phone", "ration_card", "bank_account", "members", "children_under_5", "religion", "education",
    "occupation", "distance_clinic_km", "transport", "income_band", "migrant", "bed_nets",
];
/// Topics of counselling.
pub(crate) const COUNSELLING: &[&str] = &[
    "diet", "rest", "iron", "danger_signs", "birth_plan", "breastfeeding", "family_planning", "hygiene",
    "immunisation", "bed_net", "savings", "blood_donor", "facility_choice", "phone_numbers", "newborn_care",
];
/// Findings of an examination.
pub(crate) const EXAM: &[&str] = &[
    "bp_systolic", "bp_diastolic", "pulse", "temperature", "fundal_height", "fetal_heart_rate", "oedema", "pallor",
    "urine_protein", "urine_sugar", "presentation", "breast_exam", "muac",
];
