"""The languages in which the package `emoji` has names, each with its own name for itself."""

LANGUAGES = {
    "en": "English", "es": "Español", "ja": "日本語", "ko": "한국어", "pt": "Português", "it": "Italiano",
    "fr": "Français", "de": "Deutsch", "fa": "فارسی", "id": "Indonesia",
    "zh": "中文", "ru": "Русский", "tr": "Türkçe", "ar": "العربية",
}  # fmt: skip
