-- The one pass over CHARTEVENTS: rows of any item that an extract uses. Only texts that some rule names keep their
-- VALUE; every other text becomes '#', which is enough to know that there was one.
SELECT
    subject_id,
    hadm_id,
    icustay_id,
    itemid,
    seconds(charttime) AS charttime,
    CASE WHEN value IS NULL OR value IN (SELECT text FROM known_texts) THEN value ELSE '#' END AS value,
    valuenum
FROM chartevents
WHERE itemid IN (SELECT itemid FROM items WHERE extract IN ('culture', 'ce', 'labs_ce', 'mechvent'))
