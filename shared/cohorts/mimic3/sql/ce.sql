-- 5. Bedside measurements. A text that names an oxygen device becomes the device's code, whatever the item.
SELECT DISTINCT
    icustay_id,
    charttime,
    itemid,
    CASE value
        WHEN 'None' THEN 0 WHEN 'Ventilator' THEN 1 WHEN 'Cannula' THEN 2 WHEN 'Nasal Cannula' THEN 2
        WHEN 'Face Tent' THEN 3 WHEN 'Aerosol-Cool' THEN 4 WHEN 'Trach Mask' THEN 5 WHEN 'Hi Flow Neb' THEN 6
        WHEN 'Non-Rebreather' THEN 7 WHEN '' THEN 8 WHEN 'Venti Mask' THEN 9 WHEN 'Medium Conc Mask' THEN 10
        ELSE valuenum
    END AS valuenum
FROM charted
WHERE itemid IN (SELECT itemid FROM items WHERE extract = 'ce') AND value IS NOT NULL AND icustay_id IS NOT NULL
ORDER BY icustay_id, charttime, itemid, valuenum NULLS LAST
